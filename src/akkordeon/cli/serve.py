"""The commands that answer over HTTP: predictions, and a page that shows a network at work or a kept run."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from torch import nn

from akkordeon.cli.cluster import cluster_at
from akkordeon.cli.options import OfBest, Patience, Trust
from akkordeon.cli.signals import EndingSignals
from akkordeon.core.errors import ClusterError, RecipeError, TaskError
from akkordeon.core.payload import Payload
from akkordeon.downpour.recipe import Downpour
from akkordeon.experiments.config import DataDir
from akkordeon.experiments.tasks.loader import load_network
from akkordeon.experiments.tasks.named import NETWORKS
from akkordeon.experiments.tasks.task import Task
from akkordeon.pipeline.network import Network
from akkordeon.session.http.access import LOOPBACK
from akkordeon.session.page.watch import PORT
from akkordeon.session.serving.serve import serve_weights

if TYPE_CHECKING:
    from akkordeon.session.page.server import PageServer
    from akkordeon.session.serving.server import Server

__all__ = ["serve", "watch"]


def serve(
    context: typer.Context,
    what: Annotated[
        str, typer.Argument(metavar="DIR|HOST:PORT/NAME", help="A kept run, or a network on Ray.")
    ],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Where to listen; 0 for any that is free.")
    ] = 8000,
    host: Annotated[str, typer.Option(help="An address of this machine.")] = LOOPBACK,
    token: Annotated[str | None, typer.Option(metavar="TOKEN", help="That requests must bear.")] = None,
    new_token: Annotated[
        bool, typer.Option("--new-token", help="Make one, as is done where other machines can ask.")
    ] = False,
    refresh: Annotated[
        float, typer.Option(min=0.001, metavar="SECONDS", help="How old the weights may become.")
    ] = 1.0,
    ema: Annotated[
        bool, typer.Option("--ema", help="Of a network on Ray, the average of the weights.")
    ] = False,
    best: OfBest = False,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--network",
            metavar=f"[{'|'.join(NETWORKS)}|FILE.py:FUNCTION]",
            help="The network, where DIR has checkpoints alone.",
        ),
    ] = None,
    trust: Trust = False,
    data_dir: DataDir = None,
    patience: Patience = None,
) -> None:
    """Answer predictions over HTTP until Ctrl-C, always with the newest weights."""
    settings = {"port": port, "host": host, "token": True if new_token else token, "refresh_s": refresh}
    if new_token and token is not None:
        raise RecipeError("a token is made, or it is given: leave out --new-token or --token")
    if _is_network(what):
        of_folders: dict[str, object] = {"--best": best, "--network": recipe, "--trust": trust}
        source = context.get_parameter_source("data_dir")
        if source is not None and source.name == "COMMANDLINE":  # of the environment it is for others
            of_folders["--data-dir"] = data_dir
        _refuse_given(of_folders, f"{what} is a network on Ray")
    else:
        _refuse_given({"--ema": ema, "--patience": patience}, f"{what} is a folder")
    with EndingSignals():
        serving: AbstractContextManager[Server]
        if _is_network(what):
            serving = _network_served(what, patience, ema=ema, **settings)
        else:
            serving = _folder_served(Path(what), recipe, best, trust, data_dir, **settings)
        with serving as server:
            _say_where(what, server, is_new=token is None)
            threading.Event().wait()


def watch(
    what: Annotated[
        str, typer.Argument(metavar="HOST:PORT[/NAME]|DIR", help="A network on Ray, or a kept run.")
    ],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Where to listen; 0 for any that is free.")
    ] = PORT,
    host: Annotated[str, typer.Option(help="An address of this machine.")] = LOOPBACK,
    token: Annotated[
        str | None, typer.Option(metavar="TOKEN", help="That steers a network; one is made if not given.")
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Let nobody steer it.")] = False,
) -> None:
    """Show a network that runs, or a kept run, on a page in a browser until Ctrl-C."""
    if read_only and token is not None:
        raise RecipeError("where nobody may steer no token is needed: leave out --read-only or --token")
    with EndingSignals(), _shown(what, port, host, False if read_only else token) as server:
        typer.echo(f"shows {what} at {server.url}/; Ctrl-C ends it")
        if server.token is not None and token is None:
            typer.echo("whoever steers needs the token, which is shown only now:")
            typer.echo(f"  {server.page}")
        threading.Event().wait()


@contextmanager
def _shown(what: str, port: int, host: str, token: str | bool | None) -> Iterator[PageServer]:
    from akkordeon.session.page.watch import watch_only
    from akkordeon.watch.watched_run import WatchedRun

    address, _, name = what.partition("/")
    if Path(what).exists() or not address.rpartition(":")[2].isdecimal():
        from akkordeon.experiments.run_folder import REPORT

        _refuse_given({"--token": isinstance(token, str)}, f"{what} is a folder")
        with watch_only(WatchedRun(Path(what), REPORT), port, host) as server:
            yield server
        return
    from akkordeon.session.remote_session import connect

    target = f"{address}/{name or _only_network_at(address)}"
    with connect(target) as session, session.watch(port, host=host, token=token, title=target) as server:
        yield server


def _only_network_at(address: str) -> str:
    with cluster_at(address) as networks:
        names = networks.names()
    if len(names) != 1:
        there = f"there are {', '.join(names)}" if names else "there is none"
        raise ClusterError(f"which network is it? At {address} {there}; name it as in {address}/NAME")
    return str(names[0])


def _is_network(what: str) -> bool:
    address, slash, name = what.partition("/")
    return bool(slash and name) and address.rpartition(":")[2].isdecimal() and not Path(what).exists()


def _refuse_given(options: Mapping[str, object], why: str) -> None:
    """Refuse options that would make no difference."""
    given = [option for option, value in options.items() if value]
    if given:
        raise RecipeError(f"{why}, where {' and '.join(given)} would change nothing; leave that out")


def _say_where(what: str, server: Server, is_new: bool) -> None:
    typer.echo(f"serves {what}, version {server.version:,}, at {server.url}; Ctrl-C ends it")
    if server.token is not None and is_new:
        typer.echo("whoever asks needs the token, which is shown only now:")
        typer.echo(f"  Authorization: Bearer {server.token}")


@contextmanager
def _network_served(target: str, patience_s: float | None, **settings: Any) -> Iterator[Server]:
    from akkordeon.session.remote_session import connect

    with connect(target, patience_s=patience_s) as session, session.serve(**settings) as server:
        yield server


def _folder_served(
    folder: Path, recipe: str | None, best: bool, trust: bool, data_dir: str | None, **settings: Any
) -> Server:
    """A server of the weights that are kept in a folder, or of its checkpoints where it has no others."""
    from akkordeon.experiments.run_folder import BEST, WEIGHTS, load_weights
    from akkordeon.session.recovery.checkpoint_files import CheckpointFolder
    from akkordeon.session.serving.kept_weights import KeptWeights

    network, trained, example = _recipe_of(folder, recipe, trust, data_dir)
    weights, checkpoints = folder / (BEST if best else WEIGHTS), CheckpointFolder.inside(folder)

    def newest() -> Path:
        return weights if best or weights.exists() else checkpoints.newest or weights

    def load(path: Path) -> tuple[nn.Module, int | None]:
        if path == weights:
            return load_weights(path, network).module(), None
        stages = checkpoints.latest().stages_for(trained)
        module = trained.module({address: stage.tensors for address, stage in stages.items()})
        return module, max(stage.version for stage in stages.values())

    return serve_weights(KeptWeights(newest, load), example=example, **settings)


def _recipe_of(
    folder: Path, recipe: str | None, trust: bool, data_dir: str | None
) -> tuple[Network, Network | Downpour, Payload | None]:
    """The network that was trained, what it was trained as, and a batch of its inputs where one is there."""
    from akkordeon.experiments.build import build_downpour
    from akkordeon.experiments.saved_run import resumed_config

    if recipe is not None:
        network = load_network(recipe)
        return network, network, None
    config = resumed_config(folder, trust, data_dir=data_dir)
    if config.task in NETWORKS:  # the data are not needed
        network, example = load_network(config.task), None
    else:
        task = config.load_task()
        network, example = task.network, _example_of(task)
    return network, network if config.downpour is None else build_downpour(network, config.downpour), example


def _example_of(task: Task) -> Payload | None:
    try:
        return task.example()
    except TaskError:
        return None
