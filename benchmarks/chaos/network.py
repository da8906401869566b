"""The network of this benchmark: that of MNIST, whose gates come back however often they are lost."""

from __future__ import annotations

from dataclasses import replace

import akkordeon as ak
from akkordeon.experiments.tasks.named import NETWORKS


def row() -> ak.Network:
    """A row of gates, each kept every 50 updates."""
    recovery = ak.Recovery(snapshot_every=50, restarts=1000, within_s=60.0, backoff_s=0.1)
    return replace(NETWORKS["mlp"](), recovery=recovery)
