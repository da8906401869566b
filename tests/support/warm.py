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
from akkordeon.engines.ray.engine import HOME

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
        home = ray.remote(num_cpus=0, concurrency_groups={"desk": 1})(WarmHome)
        host = ray.remote(num_cpus=0)(WarmHost)
        _cluster.update({HOME: home.remote(0), **{f"warm/{i}": host.remote(0) for i in range(HOSTS)}})
    return _cluster


def end_cluster() -> None:
    """End what was started."""
    if _cluster:
        _cluster.clear()
        ray.shutdown()


class WarmHost(hosts.Host):
    """A host that can begin again."""

    def renew(self) -> None:
        self._dispatcher.stop()
        self.__init__(0)


class WarmHome(hosts.Home):
    """A home that can begin again."""

    def __init__(self, seed: int) -> None:
        hosts.COLLECT_S = 0.1
        super().__init__(seed)

    def renew(self) -> None:
        self._dispatcher.stop()
        self.__init__(0)


class WarmRay(ak.Ray):
    """The engine on the shared hosts."""

    def start(self, on_report: Any, seed: int) -> None:
        start_cluster()
        super().start(on_report, seed)

    def _place(self, address: str) -> str:
        return f"warm/{zlib.crc32(address.encode()) % HOSTS}"

    def _new_host(self, name: str, needs: Any) -> Any:
        return start_cluster()[name]

    def _end_host(self, name: str, handle: Any) -> None:
        if self._awaited:
            ray.wait(list(self._awaited), num_returns=len(self._awaited), timeout=5)
        ray.get(handle.renew.remote())
