"""Waits for Ray that end: much of what it offers waits for ever, or for minutes, where a process is dead."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TypeVar

from akkordeon.core.errors import ClusterError

__all__ = ["ANSWER_S", "FETCH_S", "answered", "ask", "end_actor", "within"]

Answer = TypeVar("Answer")

ANSWER_S = 10.0
"""How long the head of a cluster, or the registrar of a network, may take to answer."""

FETCH_S = 30.0
"""How long an answer that has been given may take to arrive."""

END_S = 10.0
"""How long Ray may take to hear that an actor is to end."""


def ask(question: Callable[[], Answer], what: str, timeout_s: float = ANSWER_S) -> Answer:
    """What Ray answers to a question that has no end of its own; what it raises, this raises.

    Args:
        question: what to ask it; goes on in a thread of its own where no answer comes in time.
        what: is asked for, for the sentence.
        timeout_s: how long it may take.

    Raises:
        ClusterError: no answer came by then.
    """
    answers: list[Answer] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def work() -> None:
        try:
            answers.append(question())
        except BaseException as error:
            errors.append(error)
        done.set()

    threading.Thread(target=work, name="akkordeon-ray-ask", daemon=True).start()
    if not done.wait(timeout_s):
        raise ClusterError(f"Ray was asked for {what} and has not answered for {timeout_s:g} s")
    if errors:
        raise errors[0]
    return answers[0]


def within(timeout_s: float, do: Callable[[], object]) -> bool:
    """Do something of Ray's that has no end of its own if Ray is dead; whether it was done by then."""

    def work() -> None:
        with suppress(Exception):
            do()

    try:
        ask(work, "nothing", timeout_s)
    except ClusterError:
        return False
    return True


def end_actor(ray: Any, handle: Any) -> None:
    """End an actor for good with its process, if Ray hears of it in time."""
    within(END_S, lambda: ray.kill(handle))


def answered(ray: Any, asked: Iterable[Any], missing: Any) -> list[Any]:
    """What actors answer who were asked something; ``missing`` for each that has not in time, or has died."""
    refs = list(asked)
    ready, _ = ray.wait(refs, num_returns=len(refs), timeout=ANSWER_S) if refs else ([], [])
    found = []
    for ref in refs:
        try:
            found.append(ray.get(ref, timeout=FETCH_S) if ref in ready else missing)
        except ray.exceptions.RayError:
            found.append(missing)
    return found
