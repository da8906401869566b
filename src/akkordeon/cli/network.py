"""Commands for networks on a Ray cluster: start, save, stop, show, change, join and detach."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from typing import Annotated, Any

import torch
import typer

from akkordeon.cli.cluster import cluster_at, detached_networks
from akkordeon.cli.options import Address, Patience, Target
from akkordeon.cli.signals import EndingSignals
from akkordeon.core.errors import AkkordeonError, ClusterError, RecipeError
from akkordeon.core.plain_state import StageState
from akkordeon.engines.ray.cluster import processes
from akkordeon.engines.ray.cluster.connection import join as join_cluster
from akkordeon.engines.ray.cluster.connection import parse_target, require_ray
from akkordeon.experiments.config import GateRule, TrainConfig
from akkordeon.experiments.presets import rule_named
from akkordeon.experiments.tasks.loader import load_function, load_gate, load_network
from akkordeon.experiments.tasks.named import NETWORKS
from akkordeon.pipeline.network import Network
from akkordeon.session.recovery.gates import GateRecovery
from akkordeon.watch.lines import scores_in_words

__all__ = ["app", "detach", "insert_gate", "join", "remove_gate", "set_gate", "status"]

SET_S = 60.0
"""How long a gate that is told to learn otherwise, or all that is under way, may take to answer."""

POLL_S = 0.2
"""How often a waiting command looks for Ctrl-C."""

app = typer.Typer(help="Start and stop networks that run on their own.", no_args_is_help=True)


@app.command("start")
def start(
    recipe: Annotated[
        str, typer.Argument(metavar=f"[{'|'.join(NETWORKS)}|FILE.py:FUNCTION]", help="What network.")
    ],
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="An address of this machine.")],
    name: Annotated[str, typer.Option(help="What it will be called.")],
    placement: Annotated[
        str, typer.Option(help="Which gates share a process: spread, pack, or as in 0,1/2.")
    ] = "spread",
    staleness: GateRule = None,
    machines: Annotated[
        int, typer.Option(min=1, help="Wait until so many have joined, and only then place the gates.")
    ] = 1,
    bf16: Annotated[bool, typer.Option(help="Send activations and gradients as bfloat16.")] = False,
    int8: Annotated[bool, typer.Option(help="Send them as int8, with a scale for each sample.")] = False,
    seed: Annotated[int, typer.Option(help="Of the first weights.")] = 0,
    start_from: Annotated[
        Path | None,
        typer.Option("--from", metavar="DIR", help="Start from the checkpoint, or weights, kept there."),
    ] = None,
    dashboard: Annotated[bool, typer.Option(help="Start Ray's dashboard, if Ray is started.")] = False,
) -> None:
    """Start a network, and Ray if none runs at that address. It goes on when this command has ended."""
    if not name or set(name) & set("/:"):
        raise ClusterError(f"a network's name has no '/' and no ':' and is not empty, got {name!r}")
    if bf16 and int8:
        raise RecipeError("activations and gradients travel as one of the two: give --bf16 or --int8")
    processes.check_listen(listen)
    require_ray()
    made = load_network(recipe, seed).replacing(None if staleness is None else rule_named(staleness))
    made, stages = (made, None) if start_from is None else _taken_up(made, start_from)
    token = processes.ensure_token()
    if token is not None:
        typer.echo("whoever joins needs the token of this cluster, which is shown only now:")
        typer.echo(f"  export RAY_AUTH_TOKEN={token}")
    with EndingSignals(), _cluster_of_ours(listen, dashboard) as networks:
        networks.wait_for_machines(machines)
        networks.start(
            name,
            made,
            made.spawns(seed, states=stages),
            seed=seed,
            placement=_placement(placement),
            wire_dtype=torch.int8 if int8 else torch.bfloat16 if bf16 else None,
            recovery=None if made.recovery is None else partial(GateRecovery, made.recovery),
            stages=stages,
            description=TrainConfig(task="mnist" if recipe == "mlp" else recipe, seed=seed).as_plain(),
        )
    typer.echo(f"{name!r} runs with {len(made.gates)} gates; to reach it: --network {listen}/{name}")


def _taken_up(made: Network, folder: Path) -> tuple[Network, Mapping[str, StageState] | None]:
    """A network with the weights kept in a folder, or what its gates go on from, where it has checkpoints."""
    from akkordeon.experiments.run_folder import CHECKPOINTS, WEIGHTS, load_weights
    from akkordeon.session.recovery.checkpoint_files import CheckpointFolder

    checkpoints = CheckpointFolder(folder / CHECKPOINTS)
    if not checkpoints.path.is_dir():
        return load_weights(folder / WEIGHTS, made), None
    kept = checkpoints.latest(typer.echo)
    stages = kept.stages_for(made)
    versions = ", ".join(f"{address} at {stage.version:,} updates" for address, stage in stages.items())
    typer.echo(f"goes on from the checkpoint in {folder}: {versions}")
    return made, stages


@contextmanager
def _cluster_of_ours(listen: str, dashboard: bool) -> Iterator[Any]:
    """Be connected to a cluster whose head is here; one that was begun for nothing is ended again."""
    began = processes.start_head(listen, dashboard)
    try:
        if began:
            if processes.is_loopback(listen):
                typer.echo(
                    "Ray listens on all interfaces of this machine, not on this address alone: "
                    "the token keeps others out, and a firewall should as well"
                )
            typer.echo(f"Ray runs; other machines join with: akkordeon join {listen}")
        leave = join_cluster(listen)
    except BaseException:
        if began:
            processes.end_head(listen)
        raise
    networks = detached_networks()
    try:
        yield networks
    except BaseException:
        for_nothing = began and _is_unused(networks)
        leave()
        if for_nothing:
            processes.end_head(listen)
            typer.echo(f"Ray at {listen} has ended again, as no network was started")
        raise
    leave()


def _is_unused(networks: Any) -> bool:
    """Whether the cluster has no network, of somebody who started one at the same time."""
    try:
        return not networks.names()
    except Exception:  # of Ray's
        return True


@app.command("save")
def save(
    target: Target,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to keep them in.")],
) -> None:
    """Keep the weights of a network, as they are now or were last; `network start --from` takes them up."""
    address, name = parse_target(target)
    with cluster_at(address) as networks:
        _save(networks, address, name, folder)


def _save(networks: Any, address: str, name: str, folder: Path) -> None:
    from akkordeon.experiments.run_folder import WEIGHTS, RunFolder

    made, description = networks.recipe(address, name)
    kept = networks.weights(address, name)
    with closing(RunFolder(folder, description)) as run_folder:
        run_folder.save(WEIGHTS, made.module(kept.states))
    versions = ", ".join(f"{gate} {version:,}" for gate, version in kept.versions.items())
    typer.echo(f"the weights of {name!r} are in {folder}; updates behind them: {versions}")
    if kept.late:
        typer.echo(f"those of {', '.join(kept.late)} are of the last cut before it was lost")


@app.command("stop")
def stop(
    target: Target,
    out: Annotated[
        Path | None, typer.Option("--save", metavar="DIR", help="Keep its weights in this folder first.")
    ] = None,
) -> None:
    """Stop a network; the last one takes the Ray that was started for it along."""
    address, name = parse_target(target)
    unknown: ClusterError | None = None
    lost = False
    with cluster_at(address) as networks:
        if out is not None:
            _save(networks, address, name, out)
        try:
            lost = _unsaved(networks, address, name)
            networks.stop(address, name)
        except ClusterError as error:
            unknown = error
        left = networks.names()
    if unknown is None:
        typer.echo(f"{name!r} has ended")
    if lost:
        typer.echo(
            "what it learned since its weights were saved last is gone: `network stop --save DIR` keeps it"
        )
    if not left and processes.is_ours(address):
        ended = processes.end_head(address)
        typer.echo(f"Ray at {address} {'has ended' if ended else 'is still ending'}, as no network is left")
    if unknown is not None:
        raise unknown


def _unsaved(networks: Any, address: str, name: str) -> bool:
    """Whether something is lost when it ends; nobody knows where its registrar has died."""
    try:
        return bool(networks.unsaved(address, name))
    except ClusterError:
        return False


def join(
    address: Address,
    resources: Annotated[
        str | None, typer.Option(metavar="JSON", help='What Ray is to know it has, as in {"fast": 1}.')
    ] = None,
    patience: Patience = None,
) -> None:
    """Make this machine part of a cluster, until Ctrl-C."""
    with EndingSignals() as signals:
        process = processes.member(address, resources)
        while True:
            with signals.counted():
                typer.echo(f"this machine is part of the cluster at {address}; Ctrl-C leaves it")
                code = _stay(process, signals)
                if signals.first is not None:
                    typer.echo(f"left the cluster at {address}")
            signals.raise_first()
            why = f"Ray ended by itself with {code}: this machine has left the cluster at {address}"
            if patience is None:
                raise ClusterError(why)
            typer.echo(f"{why}; waiting for it up to {patience:g} s")
            process = processes.member_again(address, resources, patience)


def _stay(process: Popen[bytes], signals: EndingSignals) -> int:
    """Wait for the end of Ray's part on this machine, and have it end; its exit code."""
    answered = 0
    while True:
        try:
            return process.wait(POLL_S)
        except TimeoutExpired:
            if answered < signals.count:
                answered = signals.count
                processes.end_member(process, at_once=answered > 1)


def status(address: Address) -> None:
    """Show the networks of a cluster: gates, where they are and how they do, and sentinels."""
    with cluster_at(address) as networks:
        names = networks.names()
        if not names:
            typer.echo(f"no network at {address}")
        for name in names:
            try:
                lines = list(_status_lines(networks.status(address, name)))
            except ClusterError as error:
                lines = [f"{name}: {error}"]
            for line in lines:
                typer.echo(line)


def _status_lines(status: Any) -> Iterator[str]:
    yield f"{status.name}: {status.failure or 'runs'}"
    for gate in status.gates:
        place = f"{gate.node} number {gate.pid}"
        if gate.status is None:
            yield f"  {gate.address:<10} {place}  has not answered yet"
            continue
        how = gate.status
        tau = f"τ mean {how.staleness_mean:.1f} max {how.staleness_max}"
        rate = f"{gate.updates_per_s:.1f} updates/s  {how.stashed} in flight"
        yield f"  {gate.address:<10} {place}  version {how.version}  {tau}  {rate}"
    for sentinel in status.sentinels:
        place = f"{sentinel.node} number {sentinel.pid}"
        yield f"  {sentinel.name:<10} {sentinel.role} on {place}  {_last(sentinel.last)}"
    for event in status.events:
        yield f"  earlier: {event}"


def _last(record: Any) -> str:
    if record is None:
        return "nothing reported yet"
    what = f"epoch {record.epoch}" if hasattr(record, "epoch") else f"round {record.round}"
    scores = scores_in_words(record.scores)
    return f"{what}  loss {record.loss:.4f}{scores}  {record.samples_per_s:,.0f} samples/s"


def detach(
    target: Target,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the sentinel.")],
    drop: Annotated[bool, typer.Option(help="Forget its batches under way instead of waiting.")] = False,
) -> None:
    """Have a sentinel of a network end, whoever attached it."""
    address, which = parse_target(target)
    with cluster_at(address) as networks:
        networks.detach(address, which, name, drop)
    typer.echo(f"{name!r} is told to end")


def set_gate(
    target: Target,
    gate: Annotated[str, typer.Argument(metavar="GATE", help="Its address or its name.")],
    settings: Annotated[
        list[str], typer.Argument(metavar="NAME=VALUE…", help="As lr=0.01, frozen=true, staleness=inverse.")
    ],
) -> None:
    """Have a gate of a network learn with other settings, while it trains.

    There are options of its optimizer, as lr and weight_decay; optimizer=FILE.py:FUNCTION, staleness=RULE and
    clip_norm=NUMBER; frozen and reset_optimizer, each true or false.
    """
    from akkordeon.session.remote_session import connect

    wanted = dict(_setting(each) for each in settings)
    with connect(target) as session:
        session.gate(gate).set(timeout=SET_S, **wanted)
    typer.echo(f"{gate} learns with {', '.join(settings)}")


def insert_gate(
    target: Target,
    recipe: Annotated[
        str, typer.Argument(metavar="FILE.py:FUNCTION", help="What makes the gate, or its module.")
    ],
    before: Annotated[
        str | None, typer.Option(metavar="GATE", help="Which gate it is to come before.")
    ] = None,
    after: Annotated[str | None, typer.Option(metavar="GATE", help="Which gate it is to come after.")] = None,
    seed: Annotated[int, typer.Option(help="Of the first weights.")] = 0,
) -> None:
    """Have another gate be part of a network, while it trains.

    What is under way comes back first; all that is attached goes on with the new row.
    """
    from akkordeon.session.remote_session import connect

    if (before is None) == (after is None):
        raise RecipeError("where is the gate to come? Give --before GATE or --after GATE, one of the two")
    gate = load_gate(recipe, seed)
    with connect(target) as session:
        if before is not None:
            new = session.gate(before).insert_before(gate, timeout=SET_S)
        else:
            new = session.gate(after or "").insert_after(gate, timeout=SET_S)
        typer.echo(f"{new.address} is there; the row is {', '.join(session.network.row())}")


def remove_gate(
    target: Target, gate: Annotated[str, typer.Argument(metavar="GATE", help="Its address or its name.")]
) -> None:
    """Have a network go on without a gate, while it trains."""
    from akkordeon.session.remote_session import connect

    with connect(target) as session:
        session.gate(gate).remove(timeout=SET_S)
        typer.echo(f"{gate} is gone; the row is {', '.join(session.network.row())}")


def _setting(text: str) -> tuple[str, Any]:
    """A setting and its value, as JSON has it, but for rules and functions."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise RecipeError(f"a setting is NAME=VALUE, as in lr=0.01; got {text!r}")
    if name == "optimizer":
        return name, load_function(value)
    if name == "staleness":
        return name, rule_named(value)
    try:
        return name, json.loads(value)
    except ValueError as error:
        raise RecipeError(f"{name} is a number, true, false or a list, got {value!r}") from error


def _placement(text: str) -> Any:
    if text in ("spread", "pack"):
        return text
    try:
        return [[int(gate) for gate in group.split(",")] for group in text.split("/")]
    except ValueError as error:
        raise AkkordeonError(f"a placement is spread, pack, or as in 0,1/2; got {text!r}") from error
