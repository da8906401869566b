"""The outcome of a session as one plain dictionary, ready for JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from akkordeon.session.attachment import Attachment
from akkordeon.session.session import Session

__all__ = ["summary"]


def summary(session: Session, seconds: float) -> dict[str, Any]:
    """What every sentinel and gate came to.

    Args:
        session: at work or closed; once it is closed, with the gates' last versions.
        seconds: how long it took.

    Returns:
        ``sentinels`` by name, ``gates`` head first, each with how often it saw which τ, ``batches`` of all
        (sent = trained + refused + lost, and those in flight while it is at work), ``restarts`` of gates by
        address, ``seconds`` and ``samples_per_s`` of the training alone.
    """
    trainers = [a for a in session.attachments if a.role.trains]
    samples, status = sum(a.samples for a in trainers), session.status()
    trained_s = max((a.seconds for a in trainers), default=0.0)
    return {
        "sentinels": {a.name: _sentinel(a) for a in session.attachments if not a.role.keeps},
        "gates": [
            {
                "name": gate.name,
                "version": gate.version,
                "staleness_mean": gate.staleness_mean,
                "staleness_max": gate.staleness_max,
                "staleness": {str(tau): gate.staleness[tau] for tau in sorted(gate.staleness)},
                **({} if gate.diagnosis is None else {"diagnosis": asdict(gate.diagnosis)}),
            }
            for gate in status.gates
        ],
        "batches": asdict(status.batches),
        "restarts": dict(status.restarts),
        "seconds": seconds,
        "samples_per_s": samples / trained_s if trained_s else 0.0,
    }


def _sentinel(attachment: Attachment) -> dict[str, Any]:
    """Loss and scores are those of the last round; samples and seconds of all of them."""
    rounds = attachment.epochs or attachment.rounds
    return {
        "role": attachment.role,
        "rounds": attachment.epochs_done or attachment.rounds_done,
        "loss": rounds[-1].loss if rounds else None,
        "scores": dict(rounds[-1].scores) if rounds else {},
        "samples": attachment.samples,
        "seconds": attachment.seconds,
    }
