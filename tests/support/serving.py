"""What tests of serving share: weights that are given, and a service without a socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from torch import nn

from akkordeon.core.errors import SessionClosedError
from akkordeon.session.serving.app import Service
from akkordeon.session.serving.batcher import Batcher
from akkordeon.session.serving.bodies import Inputs
from akkordeon.session.serving.learning import Learning
from akkordeon.session.serving.limits import Limits
from akkordeon.session.serving.weights import Refresher, ServedWeights

NEVER_S = 1000.0


@dataclass
class GivenWeights:
    """One module after the other, versions 1, 2, …, and then no more."""

    modules: list[nn.Module]
    trained: int | None = None
    versions: Iterator[int] = field(default_factory=lambda: iter(range(1, 1000)))

    def fetch(self, before: ServedWeights | None) -> ServedWeights:
        if not self.modules:
            raise SessionClosedError("there are no more")
        return ServedWeights(self.modules.pop(0).eval(), next(self.versions), time.monotonic())

    def batches_trained(self) -> int | None:
        return self.trained


class Asker:
    """Asks a service in the thread that calls; ``url`` is what it is called."""

    def __init__(self, service: Any, url: str = "http://service") -> None:
        self._transport = httpx.ASGITransport(service.app)
        self._url = url

    def get(self, path: str, **options: Any) -> httpx.Response:
        return asyncio.run(self._ask("GET", path, options))

    def post(self, path: str, **options: Any) -> httpx.Response:
        return asyncio.run(self._ask("POST", path, options))

    async def _ask(self, method: str, path: str, options: dict[str, Any]) -> httpx.Response:
        asker = httpx.AsyncClient(transport=self._transport, base_url=self._url, trust_env=False)
        async with asker:
            return await asker.request(method, path, **options)


@contextmanager
def service_of(
    module: nn.Module,
    *,
    token: str | None = None,
    example: Any = None,
    learning: Learning | None = None,
    refresh_s: float = NEVER_S,
    **limits: Any,
) -> Iterator[Asker]:
    """A service of one module, and somebody who asks it."""
    bounds = Limits(**{"wait_ms": 0.0, **limits})
    weights = Refresher(GivenWeights([module]), refresh_s)
    batcher = Batcher(lambda: weights.latest, bounds.batch_max, bounds.wait_ms / 1000)
    yield Asker(Service(weights, batcher, Inputs(example), bounds, token, learning))
    batcher.close()
    weights.close()
