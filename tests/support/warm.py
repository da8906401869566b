"""A local Ray cluster that all tests share, and an engine whose hosts are used again: Ray starts slowly."""

from __future__ import annotations

import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import cloudpickle
import ray

import akkordeon as ak
from akkordeon.engines.ray import hosts
from akkordeon.engines.ray.connection import join
from akkordeon.engines.ray.host_pool import SESSION_HOST, HostPool

HOSTS = 2

TESTS = str(Path(__file__).parents[1])

_cluster: dict[str, Any] = {}


def start_cluster() -> dict[str, Any]:
    """The hosts of the shared cluster by name; it is started by whoever needs it first."""
    if not _cluster:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about things of Ray's own
            join(None)
        for module in list(sys.modules.values()):  # hosts do not have the tests
            if (getattr(module, "__file__", None) or "").startswith(TESTS):
                cloudpickle.register_pickle_by_value(module)
                ray.cloudpickle.register_pickle_by_value(module)
        session_host = ray.remote(num_cpus=0, concurrency_groups={"control": 1})(WarmSessionHost)
        host = ray.remote(num_cpus=0)(WarmHost)
        _cluster[SESSION_HOST] = session_host.remote(0)
        _cluster.update({f"warm/{i}": host.remote(0) for i in range(HOSTS)})
    return _cluster


def end_cluster() -> None:
    """End what was started."""
    if _cluster:
        _cluster.clear()
        ray.shutdown()


class WarmHost(hosts.HostProcess):
    """A host that can begin again."""

    def renew(self) -> None:
        self._dispatcher.stop()
        self.__init__(0)


class WarmSessionHost(hosts.SessionHost):
    """A session host that can begin again."""

    def __init__(self, seed: int) -> None:
        hosts.COLLECT_S = 0.1
        super().__init__(seed)

    def renew(self) -> None:
        self._dispatcher.stop()
        self.__init__(0)


class WarmPool(HostPool):
    """The shared hosts."""

    def _host_of(self, address: str) -> str:
        return f"warm/{zlib.crc32(address.encode()) % HOSTS}"

    def _start(self, name: str, needs: Any) -> Any:
        return start_cluster()[name]

    def end(self, name: str, handle: Any) -> None:
        ray.get(handle.renew.remote())


class WarmRay(ak.Ray):
    """The engine on the shared hosts."""

    def start(self, on_report: Any, seed: int) -> None:
        start_cluster()
        super().start(on_report, seed)

    def _new_pool(self, seed: int) -> HostPool:
        return WarmPool(seed)

    def _end_host(self, name: str, handle: Any) -> None:
        if owed := self._heartbeats.owed():
            ray.wait(owed, num_returns=len(owed), timeout=5)
        super()._end_host(name, handle)
