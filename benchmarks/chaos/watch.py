"""Prints how a network is, a line of JSON four times a second, on a machine of the cluster.

python benchmarks/chaos/watch.py HOST:PORT NAME
"""

from __future__ import annotations

import json
import sys
import time

from akkordeon.cli.cluster import cluster_at
from akkordeon.core.errors import ClusterError

EVERY_S = 0.25


def main() -> None:
    address, name = sys.argv[1:]
    with cluster_at(address) as networks:
        while True:
            try:
                networks.unsaved(address, name)  # which asks the gates how they are just now
                status = networks.status(address, name)
            except ClusterError as error:
                print(json.dumps({"at_s": time.monotonic(), "error": str(error)}), flush=True)
            else:
                gates = {
                    gate.address: [gate.pid, gate.node, gate.status.version if gate.status else None]
                    for gate in status.gates
                }
                sentinels = {sentinel.name: [sentinel.pid, sentinel.node] for sentinel in status.sentinels}
                line = {"at_s": time.monotonic(), "gates": gates, "sentinels": sentinels}
                print(
                    json.dumps(line | {"failure": status.failure, "events": status.events[-4:]}), flush=True
                )
            time.sleep(EVERY_S)


main()
