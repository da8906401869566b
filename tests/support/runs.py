"""Runs that are taken up, and that are replayed: to the same bits as those that went through."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.harness import WAIT_S, same_bits
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.engines.base import Engine


def is_taken_up_to_the_bit(network: ak.Network, batches: list, at: int, in_flight: int) -> bool:
    """Whether a run in the simulator that ends after so many batches goes on as one that did not end."""

    def trained(*parts: list, resume: Any = None) -> tuple[Any, Any]:
        with ak.run(network, engine=ak.Simulator(seed=2), resume=resume) as session:
            for part in parts:
                name = f"of {len(part)}"
                session.attach(ak.Sentinel.train(part, F.cross_entropy, in_flight=in_flight, name=name))
                session.wait(timeout=WAIT_S)
            return session.checkpoint(), session.module()

    first, _ = trained(batches[:at])
    _, module = trained(batches[at:], resume=first)
    return same_bits(trained(batches[:at], batches[at:])[1], module)


def is_replayed_to_the_bit(
    recipe: ak.Network | ak.Downpour, sentinels: Sequence[Any], engine: Engine, record: Path
) -> bool:
    """Whether a run with a record ends with the weights that its replay ends with."""
    with ak.run(recipe, engine=engine, record=record) as session:
        for sentinel in sentinels:
            session.attach(sentinel)
        session.wait(timeout=WAIT_S)
        module = session.module()
    return same_bits(ak.replay(record, recipe, list(sentinels)).module(), module)
