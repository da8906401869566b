"""Commands for networks on a Ray cluster: start and stop them, join machines, attach and detach sentinels."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from akkordeon.core.errors import AkkordeonError, ClusterError, WaitTimeoutError

__all__ = ["detach", "join", "network", "sentinel", "status"]

POLL_S = 0.2
"""How often a waiting command looks for Ctrl-C."""

network = typer.Typer(help="Start and stop networks that run on their own.", no_args_is_help=True)
sentinel = typer.Typer(help="Feed a network from this machine.", no_args_is_help=True)

Address = Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the cluster's head listens.")]
Target = Annotated[str, typer.Argument(metavar="HOST:PORT/NAME", help="Which network.")]
TargetOption = Annotated[str, typer.Option("--network", metavar="HOST:PORT/NAME", help="Which network.")]
DataName = Annotated[
    str, typer.Option("--data", metavar="[digits|mnist|fashion-mnist|FILE.py:FUNCTION]", help="The data.")
]
DataDir = Annotated[
    str | None,
    typer.Option(envvar="AKKORDEON_DATA", metavar="DIR", help="The folder with the files of the data set."),
]
Take = Annotated[int | None, typer.Option(min=1, help="The first N samples alone.")]
SentinelName = Annotated[
    str | None, typer.Option("--name", help="Its name; the network finds one if not given.")
]


# ── networks ─────────────────────────────────────────────────────────────────────────────────────────


@network.command("start")
def start(
    recipe: Annotated[str, typer.Argument(metavar="[mlp|digits|FILE.py:FUNCTION]", help="What network.")],
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="An address of this machine.")],
    name: Annotated[str, typer.Option(help="What it will be called.")],
    placement: Annotated[
        str, typer.Option(help="Which gates share a process: spread, pack, or as in 0,1/2.")
    ] = "spread",
    staleness: Annotated[
        Literal["latest", "stash", "dc-constant", "dc-adaptive"] | None,
        typer.Option(help="What all gates do about stale gradients."),
    ] = None,
    machines: Annotated[
        int, typer.Option(min=1, help="Wait until so many have joined, and only then place the gates.")
    ] = 1,
    bf16: Annotated[bool, typer.Option(help="Send activations and gradients as bfloat16.")] = False,
    seed: Annotated[int, typer.Option(help="Of the first weights.")] = 0,
    start_from: Annotated[
        Path | None,
        typer.Option("--from", metavar="DIR", help="Start from the weights that were kept in this folder."),
    ] = None,
    dashboard: Annotated[bool, typer.Option(help="Start Ray's dashboard, if Ray is started.")] = False,
) -> None:
    """Start a network, and Ray if none runs at that address. It goes on when this command has ended."""
    import torch

    from akkordeon.engines.ray.connection import join as join_cluster
    from akkordeon.experiments.presets import rule_named
    from akkordeon.experiments.run_folder import WEIGHTS, load_weights
    from akkordeon.experiments.tasks import load_network
    from akkordeon.experiments.train import Plan, described

    if not name or set(name) & set("/:"):
        raise ClusterError(f"a network's name has no '/' and no ':' and is not empty, got {name!r}")
    nodes = _nodes()
    nodes.check_listen(listen)
    networks = _networks()
    made = load_network(recipe, seed).replacing(None if staleness is None else rule_named(staleness))
    if start_from is not None:
        made = load_weights(start_from / WEIGHTS, made)
    token = nodes.ensure_token()
    if token is not None:
        typer.echo("whoever joins needs the token of this cluster, which is shown only now:")
        typer.echo(f"  export RAY_AUTH_TOKEN={token}")
    began = nodes.start_head(listen, dashboard)
    leave: Callable[[], None] = lambda: None  # noqa: E731
    joined = False
    try:
        if began:
            if nodes.is_loopback(listen):
                typer.echo(
                    "Ray listens on all interfaces of this machine, not on this address alone: "
                    "the token keeps others out, and a firewall should"
                )
            typer.echo(f"Ray runs; other machines join with: akkordeon join {listen}")
        leave = join_cluster(listen)
        joined = True
        networks.wait_for_machines(machines)
        networks.start(
            name,
            made,
            made.spawns(seed),
            seed=seed,
            placement=_placement(placement),
            wire_dtype=torch.bfloat16 if bf16 else None,
            description=described(Plan(task="mnist" if recipe == "mlp" else recipe, seed=seed)),
        )
    except BaseException:
        alone = began and (not joined or _is_unused(networks))
        leave()
        if alone:
            nodes.end_head(listen)
        raise
    leave()
    typer.echo(f"{name!r} runs with {len(made.gates)} gates; to reach it: --network {listen}/{name}")


def _is_unused(networks: Any) -> bool:
    """Whether the cluster has no network, of somebody who started one at the same time."""
    try:
        return not networks.names()
    except Exception:  # of Ray's
        return True


@network.command("save")
def save(
    target: Target,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to keep them in.")],
) -> None:
    """Keep the weights of a network, as they are now or were last; `network start --from` takes them up."""
    address, name = _probed(target)
    networks = _networks()
    with _cluster(address):
        _save(networks, address, name, folder)


def _save(networks: Any, address: str, name: str, folder: Path) -> None:
    from akkordeon.experiments.run_folder import WEIGHTS, Folder

    made, description = networks.recipe(address, name)
    kept = networks.weights(address, name)
    into = Folder(folder, description)
    try:
        into.save(WEIGHTS, made.module(kept.states))
    finally:
        into.close()
    versions = ", ".join(f"{gate} {version:,}" for gate, version in kept.versions.items())
    typer.echo(f"the weights of {name!r} are in {folder}; updates behind them: {versions}")
    if kept.late:
        typer.echo(f"those of {', '.join(kept.late)} are of the last cut before it was lost")


@network.command("stop")
def stop(
    target: Target,
    out: Annotated[
        Path | None, typer.Option("--save", metavar="DIR", help="Keep its weights in this folder first.")
    ] = None,
) -> None:
    """Stop a network; the last one takes the Ray that was started for it along."""
    address, name = _probed(target)
    networks, nodes = _networks(), _nodes()
    unknown: ClusterError | None = None
    lost = False
    with _cluster(address):
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
    if not left and nodes.is_ours(address):
        ended = nodes.end_head(address)
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
) -> None:
    """Make this machine part of a cluster, until Ctrl-C."""
    process = _nodes().member(address, resources)
    typer.echo(f"this machine is part of the cluster at {address}; Ctrl-C leaves it")
    asked: list[int] = []

    def leave(number: int, _frame: Any) -> None:
        asked.append(number)
        process.terminate()

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if not asked:
        raise ClusterError(f"Ray ended by itself with {code}: this machine has left the cluster at {address}")
    typer.echo(f"left the cluster at {address}")


def status(address: Address) -> None:
    """Show the networks of a cluster: gates, where they are and how they do, and sentinels."""
    _probe(address)
    networks = _networks()
    with _cluster(address):
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
    scores = "".join(f"  {name} {value:.4f}" for name, value in record.scores.items())
    return f"{what}  loss {record.loss:.4f}{scores}  {record.samples_per_s:,.0f} samples/s"


def detach(
    target: Target,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the sentinel.")],
    drop: Annotated[bool, typer.Option(help="Forget its batches under way instead of waiting.")] = False,
) -> None:
    """Have a sentinel of a network end, whoever attached it."""
    address, which = _probed(target)
    networks = _networks()
    with _cluster(address):
        networks.detach(address, which, name, drop)
    typer.echo(f"{name!r} is told to end")


# ── sentinels ────────────────────────────────────────────────────────────────────────────────────────


@sentinel.command("train")
def train(
    target: TargetOption,
    data: DataName,
    data_dir: DataDir = None,
    take: Take = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Times to read the data.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples of a batch.")] = None,
    in_flight: Annotated[int, typer.Option(min=1, help="Batches under way at once.")] = 5,
    name: SentinelName = None,
    seed: Annotated[int, typer.Option(help="Of the order of the samples.")] = 0,
) -> None:
    """Train a network with data of this machine; Ctrl-C ends it, the network goes on."""
    from akkordeon.data.split import take_samples
    from akkordeon.experiments.tasks import load_task
    from akkordeon.sentinels.recipes import Sentinel

    _probed(target)
    task = load_task(data, data_dir)
    batches = task.train_batches(batch_size, seed)
    recipe = partial(Sentinel.train, batches if take is None else take_samples(batches, take), task.loss)
    ended, number = _attach(
        target,
        recipe(in_flight=in_flight, epochs=epochs or task.epochs, scores=task.scores, name=name),
    )
    sent, trained, refused, lost = ended.batches.as_tuple()
    typer.echo(
        f"{ended.name}: {sent:,} batches sent, {trained:,} trained, {refused:,} refused, {lost:,} lost"
    )
    _exit_if_terminated(number)


@sentinel.command("validate")
def validate(
    target: TargetOption,
    data: DataName,
    data_dir: DataDir = None,
    take: Take = None,
    every: Annotated[float, typer.Option(min=0.01, metavar="SECONDS", help="Time between rounds.")] = 20.0,
    name: SentinelName = None,
) -> None:
    """Validate a network with data of this machine, until Ctrl-C."""
    from akkordeon.data.sources import as_batches
    from akkordeon.data.split import take_samples
    from akkordeon.experiments.tasks import load_task
    from akkordeon.sentinels.recipes import Sentinel

    _probed(target)
    task = load_task(data, data_dir)
    batches = task.validate if take is None else take_samples(as_batches(task.validate, 1024), take)
    _, number = _attach(
        target, Sentinel.validate(batches, task.loss, scores=task.scores, every_s=every, name=name)
    )
    _exit_if_terminated(number)


def _exit_if_terminated(number: int | None) -> None:
    """Ctrl-C is how a sentinel is ended; who sends another signal is told that it was obeyed."""
    if number is not None and number != signal.SIGINT:
        typer.echo(f"ended by {signal.Signals(number).name}")
        raise typer.Exit(128 + number)


def _attach(target: str, recipe: Any) -> tuple[Any, int | None]:
    """Attach a sentinel and follow it to its end; Ctrl-C or SIGTERM has it end, twice at once.

    What a sentinel came to when SIGTERM ended it is told on its way out.
    """
    from akkordeon.session.remote_session import connect
    from akkordeon.watch.lines import Lines
    from akkordeon.watch.signals import SignalCounter

    echo: Callable[[str], None] = typer.echo
    view = Lines(echo, partial(typer.echo, err=True))
    with view, connect(target) as session, SignalCounter() as signals:  # Ray takes SIGTERM when it begins
        session.subscribe(view.tell)
        attachment = session.attach(recipe)
        typer.echo(f"{attachment.name!r} is attached to {target}; Ctrl-C ends it")
        answered = 0
        while True:
            try:
                attachment.wait(POLL_S)
                return attachment, signals.first
            except WaitTimeoutError:
                if answered < signals.count:
                    answered = signals.count
                    attachment.detach(drop=answered > 1)


# ── Ray, only now ────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _cluster(address: str) -> Iterator[None]:
    from akkordeon.engines.ray.connection import join as join_cluster

    leave = join_cluster(address)
    try:
        yield
    finally:
        leave()


def _probe(address: str) -> None:
    from akkordeon.engines.ray.connection import probe

    probe(address)


def _probed(target: str) -> tuple[str, str]:
    """Address and name of a network, at whose address a cluster answers us."""
    from akkordeon.engines.ray.connection import parse_target

    address, name = parse_target(target)
    _probe(address)
    return address, name


def _networks() -> Any:
    from akkordeon.engines.ray.connection import require_ray

    require_ray()
    from akkordeon.engines.ray import detached as networks

    return networks


def _nodes() -> Any:
    from akkordeon.engines.ray import processes as nodes

    return nodes


def _placement(text: str) -> Any:
    if text in ("spread", "pack"):
        return text
    try:
        return [[int(gate) for gate in group.split(",")] for group in text.split("/")]
    except ValueError as error:
        raise AkkordeonError(f"a placement is spread, pack, or as in 0,1/2; got {text!r}") from error
