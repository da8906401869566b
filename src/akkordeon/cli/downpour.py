"""The command for Downpour: replicas of a task's network that push to parameter shards."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from akkordeon.cli.options import AsJson, Out, RecordTo, Web, with_settings
from akkordeon.cli.train import carry_out
from akkordeon.experiments.config import DownpourConfig, TrainConfig
from akkordeon.experiments.report.watching import WatchConfig

__all__ = ["downpour"]


@with_settings(without=TrainConfig.ONE_ROW)
def downpour(
    replication: DownpourConfig,
    config: TrainConfig,
    watching: WatchConfig,
    samples_per_replica: Annotated[
        int | None, typer.Option(min=1, help="Train on the first N samples for each replica alone.")
    ] = None,
    json: AsJson = False,
    out: Out = None,
    record: RecordTo = None,
    web: Web = None,
) -> None:
    """Train replicas of a task's network on parts of its data; shards hold the weights that count.

    The data is cut into one part for each replica. Validation, and what is kept, are of the shards.
    """
    take = None if samples_per_replica is None else samples_per_replica * replication.replicas
    config = replace(config, take=take, downpour=replication)
    carry_out(config, json, out, record, watching, web=web)
