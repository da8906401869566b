"""Messages round a ring of three processes: bare Ray actors, and ours."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import ray
import torch

import akkordeon as ak
from akkordeon.core.actor import Actor, Effect, Report, Send, Spawn
from akkordeon.core.messages import Batch, Forward
from akkordeon.engines.threads import Threads

ACTORS = 3
TOKENS = 4
PAYLOADS = {"4 B": 4, "200 KB": 200_000, "2 MB": 2_000_000, "8 MB": 8_000_000}


# -- bare ----------------------------------------------------------------------------------------------------


class Bare:
    """Passes an array on; nothing else."""

    def follow(self, following: Any, referee: Any) -> None:
        self.following, self.referee = following, referee

    @ray.method(num_returns=0)
    def pass_on(self, hops_left: int, array: np.ndarray) -> None:
        if hops_left:
            self.following.pass_on.remote(hops_left - 1, array)
        else:
            self.referee.done.remote()


class Referee:
    """Counts the tokens that have arrived."""

    def __init__(self) -> None:
        self.left = threading.Semaphore(0)

    @ray.method(num_returns=0)
    def done(self) -> None:
        self.left.release()

    @ray.method(concurrency_group="wait")
    def wait(self, tokens: int) -> None:
        for _ in range(tokens):
            self.left.acquire()


class BareRing:
    hops_factor = 1

    def __init__(self) -> None:
        self.actors = [ray.remote(num_cpus=0)(Bare).remote() for _ in range(ACTORS)]
        self.referee = ray.remote(num_cpus=0, concurrency_groups={"wait": 1})(Referee).remote()
        followers = [*self.actors[1:], self.actors[0]]
        ray.get(
            [
                actor.follow.remote(after, self.referee)
                for actor, after in zip(self.actors, followers, strict=True)
            ]
        )

    def ms_per_message(self, size: int, hops: int) -> float:
        array = np.zeros(size // 4, np.float32)
        began_s = time.perf_counter()
        for token in range(TOKENS):
            self.actors[token % ACTORS].pass_on.remote(hops, array)
        ray.get(self.referee.wait.remote(TOKENS))
        return (time.perf_counter() - began_s) * 1000 / (TOKENS * hops)

    def close(self) -> None:
        for actor in (*self.actors, self.referee):
            ray.kill(actor)


# -- ours ----------------------------------------------------------------------------------------------------


class Link(Actor):
    def __init__(self, address: str, following: str) -> None:
        self.address = address
        self.following = following

    def receive(self, message: Any, now_s: float) -> Iterator[Effect]:
        hops_left = message.batch.number
        if hops_left:
            yield Send(self.following, Forward(Batch("token", hops_left - 1), message.payload))
        else:
            yield Report("done")


class OurRing:
    """Ours.

    Args:
        engine: that carries it.
        together: all in one host (a replica's actors share one), or each in its own.
        hops_factor: where messages stay in a process, more are needed to see past the way in and out.
    """

    def __init__(self, engine: Any, together: bool = False, hops_factor: int = 1) -> None:
        self.engine, self.done, self.hops_factor = engine, 0, hops_factor
        engine.start(self._count, seed=0)
        self.addresses = [f"replica/0/ring/{i}" if together else f"ring/{i}" for i in range(ACTORS)]
        followers = [*self.addresses[1:], self.addresses[0]]
        engine.spawn_all(
            Spawn(a, lambda a=a, f=f: Link(a, f)) for a, f in zip(self.addresses, followers, strict=True)
        )

    def _count(self, record: Any) -> None:
        self.done += record == "done"

    def ms_per_message(self, size: int, hops: int) -> float:
        payload = torch.zeros(size // 4)
        expected = self.done + TOKENS
        began_s = time.perf_counter()
        for token in range(TOKENS):
            self.engine.send(self.addresses[token % ACTORS], Forward(Batch("token", hops), payload))
        assert self.engine.wait_until(lambda: self.done >= expected, 300)
        return (time.perf_counter() - began_s) * 1000 / (TOKENS * hops)

    def close(self) -> None:
        self.engine.stop()


def rings() -> dict[str, Any]:
    return {
        "bare Ray": BareRing(),
        "ours, a host each": OurRing(ak.Ray()),
        "ours, one host": OurRing(ak.Ray(), together=True, hops_factor=100),
        "ours, threads": OurRing(Threads(2), hops_factor=100),
    }
