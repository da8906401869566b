"""Seconds to the loss that plain training of a character GPT reaches after 1,000 steps, by way of training.

python benchmarks/delays/seconds.py [threads] [hosts] [--rule NAME] [--quick] [--json FILE] [--out DIR]

The GPT, the data and the batches are those of ``tasks.py:char_gpt``; AKKORDEON_DATA has the text. All ways
have the same samples in an update, and the learning rate that suits them, chosen on a seed of its own.

``threads``: runs on this machine, which has to be quiet: the plain loop with one and with two threads for
each operation, of which the faster is what others are compared with, and ours in two gates. ``hosts``: a
gate on each of eight hosts in virtual time. Seconds of an update are those of timetables for 1F1B and GPipe,
and of our own actors in the simulator, with costs that are measured here; of all that have micro-batches the
fastest number of them is taken. Steps to the loss are from curves with emulated delays: none for 1F1B, GPipe
and flush, one update for 2bw, and for asynchronous rows those that the simulator saw, batch by batch and
gate by gate.

What was run is kept in ``--out``: given again, a study goes on.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from emulated import Curves, Recipe, reached
from hosts import LINKS, Hosts
from kept import Kept
from real import Timed
from tasks import char_gpt
from ways import Way

import akkordeon as ak
from akkordeon.experiments.presets import rule_named

sys.path.insert(0, str(Path(__file__).parents[1]))
import figures

PLAIN = {2: "plain, 2 threads", 1: "plain, 1 thread"}
"""By threads of an operation; what the first of these comes to is the target."""

PEERS = {"1F1B": "1f1b", "GPipe": "gpipe"}
GATES = 2
"""Of a row on threads."""

ON_THREADS = (
    Way("flush", 2, 2),
    Way("flush", 4, 4),
    Way("2bw", 2, 4),
    Way("async", 1, 2),
    Way("async", 1, 4),
)
ASYNC = (Way("async", 1, 4), Way("async", 1, 8))


@dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        steps: of plain.
        every: so many steps a loss is taken.
        seeds: that are reported.
        lrs: to choose from.
        micros: micro-batches of an update to choose from.
        updates: that are timed in the simulator.
        asynchronous: those ways.
        threaded: those on threads.
    """

    steps: int = 1000
    every: int = 50
    seeds: int = 3
    lrs: tuple[float, ...] = (0.001, 0.003, 0.01)
    micros: tuple[int, ...] = (1, 2, 4, 8)
    updates: int = 24
    asynchronous: tuple[Way, ...] = ASYNC
    threaded: tuple[Way, ...] = ON_THREADS


QUICK = Size(40, 10, 1, (0.003,), (4,), 10, ASYNC[:1], ON_THREADS[1:4])


class Seconds:
    """The study.

    Args:
        size: how much is run.
        rule: for stale gradients, by name.
        optimizer: of everybody, by name.
        kept: what was run before.
    """

    def __init__(self, size: Size, rule: str, optimizer: str, kept: Kept) -> None:
        self._size, self._rule, self._optimizer, self._kept = size, rule, optimizer, kept
        self._curves = Curves(_task, kept, size.steps, size.every, size.lrs)

    def on_hosts(self, place: str) -> list[dict[str, Any]]:
        """A row of the table for each way, 1F1B first."""
        hosts, micros = Hosts(_task(0), self._optimizer, self._kept, self._size.updates), self._size.micros
        plain, two = Recipe.plain(self._optimizer), Recipe.two_buffers(self._rule, self._optimizer)
        rows = []
        for peer, schedule in PEERS.items():
            peer_s = {m: hosts.lockstep_s(place, schedule, m) for m in micros}
            best = min(peer_s, key=peer_s.__getitem__)
            rows.append(self._row(f"{peer}, {best} micro-batches", peer_s[best], plain))
        rows.append(self._row("one host alone", hosts.one_host_s(), plain))
        for schedule, recipe in (("flush", plain), ("2bw", two)):
            ways = [Way(schedule, m, m * (1 + (schedule == "2bw"))) for m in micros]  # type: ignore[arg-type]
            timed = {way: hosts.ours(place, way)[0] for way in ways}
            way = min(timed, key=timed.__getitem__)
            rows.append(self._row(_named(way, recipe), timed[way], recipe))
        for way in self._size.asynchronous:
            update_s, late = hosts.ours(place, way)
            recipe = Recipe(self._rule, self._optimizer, late, way.micros)
            rows.append(self._row(_named(way, recipe), update_s, recipe))
        return _beside(rows, rows[0]["seconds"])

    def _row(self, name: str, update_s: float, recipe: Recipe) -> dict[str, Any]:
        steps = [self._curves.steps_to_target(recipe, seed) for seed in range(self._size.seeds)]
        return {
            "way": name,
            "update_ms": 1000 * update_s,
            "delays": recipe.mean_delays,
            "lr": self._curves.lr(recipe),
            "steps": mean(steps),
            "steps_of_seeds": steps,
            "seconds": mean(steps) * update_s,
        }

    def on_threads(self) -> list[dict[str, Any]]:
        """A row of the table for each way, plain first; beside the faster plain loop."""
        targets: dict[int, float] = {}
        plain = Recipe.plain(self._optimizer)
        rows = []
        for threads, name in PLAIN.items():
            seconds = [self._timed(threads, plain, seed, targets) for seed in range(self._size.seeds)]
            rows.append(self._timed_row(name, plain, seconds))
        for way in self._size.threaded:
            recipe = self._threaded(way)
            seconds = [self._timed(way, recipe, seed, targets) for seed in range(self._size.seeds)]
            rows.append(self._timed_row(_named(way, recipe), recipe, seconds))
        return _beside(rows, min(row["seconds"] for row in rows[: len(PLAIN)]))

    def _timed_row(self, name: str, recipe: Recipe, seconds: list[float]) -> dict[str, Any]:
        lr = self._curves.lr(recipe)
        return {"way": name, "lr": lr, "seconds": mean(seconds), "seconds_of_seeds": seconds}

    def _threaded(self, way: Way) -> Recipe:
        """What a learning rate is chosen with: delays as in 1F1B."""
        if way.schedule == "async":
            late = way.in_flight - 1
            delays = tuple(late * (GATES - 1 - k) // (GATES - 1) for k in range(GATES))
            return Recipe(self._rule, self._optimizer, (delays,), way.micros)
        plain, two = Recipe.plain(self._optimizer), Recipe.two_buffers(self._rule, self._optimizer)
        return plain if way.schedule == "flush" else two

    def _timed(self, way: Way | int, recipe: Recipe, seed: int, targets: dict[int, float]) -> float:
        """Seconds to the target of a seed, which the first run sets; a number is threads of a plain loop."""
        size, until = self._size, targets.get(seed)
        run = Timed(
            _task(seed), seed, self._optimizer, self._curves.lr(recipe), size.steps, size.every, until
        )
        plain = isinstance(way, int)
        follow = partial(run.plain, way) if plain else partial(run.ours, way, recipe.rule, GATES)
        points = self._kept(
            follow,
            threads=PLAIN[way] if plain else str(way),
            rule=recipe.rule,
            optimizer=self._optimizer,
            lr=run.lr,
            seed=seed,
            steps=size.steps,
            until=until,
        )
        targets.setdefault(seed, points[-1][1])
        return reached(points, targets[seed])


def _task(seed: int) -> ak.Task:
    torch.manual_seed(seed)
    return char_gpt()


def _named(way: Way, recipe: Recipe) -> str:
    """In a table; where no gradient is late, no rule does anything."""
    return str(way) if way.schedule == "flush" else f"{way}, {recipe.rule}"


def _beside(rows: list[dict[str, Any]], seconds: float) -> list[dict[str, Any]]:
    return [{**row, "times_faster": seconds / row["seconds"]} for row in rows]


def print_table(name: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{name}", file=sys.stderr)
    for row in rows:
        update = f"{row['update_ms']:8.1f} ms × {row['steps']:6.0f}" if "steps" in row else ""
        found = f"{row['seconds']:8.1f} s  {row['times_faster']:5.2f} ×  lr {row['lr']:g}"
        print(f"{row['way']:60s} {update} {found}  {row.get('delays', '')}", file=sys.stderr)


def main() -> None:
    parser = figures.options(__doc__, quick="40 steps, one seed, one learning rate, fewer ways")
    parser.add_argument("parts", nargs="*", metavar="threads|hosts", help="what to run; both if not given")
    parser.add_argument("--rule", default="prediction", help="for stale gradients")
    parser.add_argument("--optimizer", default="adamw", help="of everybody")
    parser.add_argument(
        "--out", type=Path, help="where runs are kept; seconds, or seconds-quick, if not given"
    )
    options = parser.parse_args()
    if wrong := set(options.parts) - {"threads", "hosts"}:
        parser.error(f"parts are threads and hosts, got {', '.join(sorted(wrong))}")
    # Refuse now a rule that does not go with 2bw, and not after what comes before it.
    replace(_task(0).network.replacing(staleness=rule_named(options.rule)), schedule=ak.TwoBuffers(1))
    torch.set_num_threads(1)
    out = options.out or Path(f"seconds{'-quick' * options.quick}")
    out.mkdir(parents=True, exist_ok=True)
    kept = Kept(out / "found.jsonl", lambda what, found: print(what, file=sys.stderr, flush=True))
    size = QUICK if options.quick else Size()
    study = Seconds(size, options.rule, options.optimizer, kept)
    tables: dict[str, Any] = {}
    if "threads" in options.parts or not options.parts:
        tables["threads here"] = study.on_threads()
    if "hosts" in options.parts or not options.parts:
        tables |= {f"8 hosts, {place}": study.on_hosts(place) for place in LINKS}
    for name, rows in tables.items():
        print_table(name, rows)
    figures.tell({"steps": size.steps, "seeds": size.seeds, "tables": _plain(tables)}, options.json)


def _plain(found: Any) -> Any:
    """As JSON has it, which has no infinity."""
    if isinstance(found, dict):
        return {name: _plain(each) for name, each in found.items()}
    if isinstance(found, list):
        return [_plain(each) for each in found]
    return None if isinstance(found, float) and not math.isfinite(found) else found


if __name__ == "__main__":
    main()
