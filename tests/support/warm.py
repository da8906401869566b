"""A local Ray cluster that all tests share, and engines whose processes are used again: both begin slowly."""

from __future__ import annotations

import sys
import warnings
import zlib
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import cloudpickle
import ray
from tests.support.workers import forked_workers

import akkordeon as ak
from akkordeon.engines.ray import hosts
from akkordeon.engines.ray.cluster.connection import join
from akkordeon.engines.ray.host_pool import SESSION_HOST, HostPool
from akkordeon.engines.ray.placement import is_replica

HOSTS = 2

RENEW_S = 15.0
"""How long a process may take to begin again; one that was stopped may have much to catch up on."""

TESTS = str(Path(__file__).parents[1])

_idle: dict[type[hosts.HostProcess], list[Any]] = defaultdict(list)


def start_cluster() -> None:
    """Be connected to the shared cluster; it is started by whoever needs it first."""
    if ray.is_initialized():
        return
    with warnings.catch_warnings(), forked_workers():
        warnings.simplefilter("ignore")  # about things of Ray's own
        join(None)
    for module in list(sys.modules.values()):  # hosts do not have the tests
        if (getattr(module, "__file__", None) or "").startswith(TESTS):
            cloudpickle.register_pickle_by_value(module)
            ray.cloudpickle.register_pickle_by_value(module)


def end_cluster() -> None:
    """End what was started."""
    _idle.clear()
    ray.shutdown()


class WarmHost(hosts.HostProcess):
    """A host that can begin again."""

    def renew(self, *arguments: Any) -> None:
        self._dispatcher.stop()
        self.__init__(*arguments)


class WarmSessionHost(hosts.SessionHost):
    """A session host that can begin again."""

    def __init__(self, *arguments: Any) -> None:
        hosts.COLLECT_S = 0.1
        super().__init__(*arguments)

    def renew(self, *arguments: Any) -> None:
        self._dispatcher.stop()
        self.__init__(*arguments)


KINDS = {hosts.HostProcess: WarmHost, hosts.SessionHost: WarmSessionHost}


class LendingPool(HostPool):
    """Takes processes that others have left, if there are any. Those of replicas are new, and really end."""

    def _launch(self, name: str, kind: type, options: dict[str, Any], arguments: tuple[Any, ...]) -> Any:
        if is_replica(name):
            return super()._launch(name, kind, options, arguments)
        while _idle[kind]:
            handle = _idle[kind].pop()
            with suppress(ray.exceptions.RayError):  # it was killed
                ray.get(handle.renew.remote(*arguments), timeout=RENEW_S)
                return handle
        return super()._launch(name, KINDS[kind], options, arguments)

    def end(self, name: str, handle: Any) -> None:
        if is_replica(name):
            super().end(name, handle)
        elif name not in self._foreign:
            with suppress(ray.exceptions.RayError):  # it was killed
                ray.get(handle.renew.remote(0), timeout=RENEW_S)
                _idle[hosts.SessionHost if name == SESSION_HOST else hosts.HostProcess].append(handle)


class WarmPool(LendingPool):
    """Few of them, whatever the network."""

    def _host_of(self, address: str) -> str:
        return f"warm/{zlib.crc32(address.encode()) % HOSTS}"


class LendingRay(ak.Ray):
    """The engine with its own placement, in processes that others have left."""

    pool: type[HostPool] = LendingPool

    def start(self, on_report: Any, seed: int) -> None:
        start_cluster()
        super().start(on_report, seed)

    def _new_pool(self, seed: int) -> HostPool:
        how = {"placement": self.placement, "wire_dtype": self.wire_dtype, "workers": self.workers}
        return self.pool(seed, **how)

    def _end_host(self, name: str, handle: Any) -> None:
        if owed := self._heartbeats.owed():
            ray.wait(owed, num_returns=len(owed), timeout=5)
        super()._end_host(name, handle)


class WarmRay(LendingRay):
    """The engine in two processes and that of the session."""

    pool = WarmPool
