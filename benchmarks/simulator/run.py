"""What the simulator is asked to show: prediction, the internet, stragglers, churn, scale.

    python benchmarks/simulator/run.py [--quick] [--json FILE] [--only prediction,internet,…]

Everything but ``prediction`` and ``scale`` is virtual time on costs measured at the start: run it on a
quiet machine, and the rest does not depend on it any more.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.messages import Attach
from akkordeon.engines.simulator.compute import Compute, Cost, Slowdown
from akkordeon.engines.simulator.faults import Crash
from akkordeon.engines.simulator.hosts import Host
from akkordeon.engines.simulator.links import PRESETS, Link
from akkordeon.experiments.schedules.compare import asynchronous, compare, enough_in_flight
from akkordeon.experiments.schedules.dry_actors import dry_row
from akkordeon.experiments.schedules.measure_costs import measure_costs
from akkordeon.experiments.schedules.world import World

sys.path.insert(0, str(Path(__file__).parents[1] / "throughput"))
from ring import messages_per_s
from settings import SETTINGS, build, dataset, gates, slices

MEGABIT = 1e6 / 8


def sgd(params):
    return torch.optim.SGD(params, lr=0.01)


# ── prediction against reality ───────────────────────────────────────────────────────────────────────


def prediction(quick: bool) -> list[dict]:
    """The threads engine's epoch at the two largest settings, predicted from costs measured in isolation."""
    x, y = dataset()
    message_s = 1 / messages_per_s(3, 1, 30_000)  # of the bare engine, one worker
    rows = []
    for setting in SETTINGS[3:4] if quick else SETTINGS[3:]:
        network = ak.Network([ak.Gate(part, sgd) for part in gates(build(setting, 0))])
        batches = [(x[cut], y[cut]) for cut in slices(len(x), setting.batch)]
        costs = measure_costs(network, batches[: 15 if quick else 30], F.cross_entropy, message_s=message_s)
        predicted_s = _predicted(costs, len(network.gates), len(batches))
        with ak.run(network, ak.Threads(2)) as session:
            training = session.attach(
                ak.Sentinel.train(batches, F.cross_entropy, in_flight=5, epochs=2 if quick else 4)
            )
            session.wait()
        measured_s = sorted(epoch.seconds for epoch in training.epochs[1:])  # the first one warms up
        median_s = measured_s[len(measured_s) // 2]
        rows.append(
            {
                "setting": setting.name,
                "predicted_s": predicted_s,
                "measured_s": median_s,
                "off": predicted_s / median_s - 1,
            }
        )
    return rows


def _predicted(costs: dict[str, Cost], count: int, batches: int) -> float:
    """Virtual seconds of one epoch on one host with two cores, five batches in flight."""
    engine = ak.Simulator(compute=Compute(costs), hosts=[Host("here", ["*"], cores=2)])
    engine.start(lambda record: None, 0)
    row = dry_row(engine.spawn, count, in_flight=5, batches=batches)
    engine.send("sentinel/0", Attach())
    engine.wait_until(row.ended, None)
    seconds = engine.now_s()
    engine.stop()
    return seconds


# ── a transformer over the internet ──────────────────────────────────────────────────────────────────

WIDTH, HEADS, LENGTH, BATCH, VOCABULARY = 512, 8, 128, 8, 65


class Block(nn.Module):
    """A causal transformer block. (B, T, WIDTH) to the same."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attend, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.think = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.attend(self.before(x)).view(b, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, HEADS, T, WIDTH / HEADS)
        x = x + self.project(mixed.transpose(1, 2).reshape(b, t, WIDTH))
        return x + self.think(self.between(x))


def transformer_world(quick: bool) -> tuple[dict, dict]:
    """Costs and sizes of a char-transformer in eight gates, measured here; and a summary of them."""
    torch.manual_seed(0)
    blocks: list[nn.Module] = [Block() for _ in range(8)]
    blocks[0] = nn.Sequential(nn.Embedding(VOCABULARY, WIDTH), blocks[0])
    blocks[7] = nn.Sequential(blocks[7], nn.Linear(WIDTH, VOCABULARY))
    network = ak.Network([ak.Gate(block, sgd) for block in blocks])
    count = 6 if quick else 20
    text = torch.randint(VOCABULARY, (count, BATCH, LENGTH))
    costs = measure_costs(
        network,
        [(x, x) for x in text],
        lambda out, y: F.cross_entropy(out.reshape(-1, VOCABULARY), y.reshape(-1)),
        warm=2,
    )
    parameters = sum(p.numel() for block in blocks for p in block.parameters())
    world = {
        "costs": [costs[address] for address in network.row()],
        "bytes_between": BATCH * LENGTH * WIDTH * 4,
        "samples": BATCH,
        "weight_bytes": 4 * parameters,
    }
    middle = costs["gate/3"].by_message()
    summary = {
        "parameters": parameters,
        "bytes_between": world["bytes_between"],
        "forward_ms": 1e3 * middle["Forward"][0],
        "backward_ms": 1e3 * middle["Backward"][0],
        "update_ms": 1e3 * middle["Backward"][1],
    }
    return world, summary


def internet(settings: dict, quick: bool) -> list[dict]:
    """1F1B with flush, GPipe, and the asynchronous row over links of 1, 20, 100 ms and 100 Mbit/s."""
    rows = []
    for latency_s in (0.001, 0.02, 0.1):
        world = World(**settings, link=Link(latency_s, 100 * MEGABIT), seconds=120 if quick else 600)
        enough = enough_in_flight(world, most=128)
        row = {"latency_ms": 1e3 * latency_s, "in_flight": enough}
        for outcome in compare(world, enough, micros=32):
            row[outcome.schedule] = outcome.samples_per_s
        row["asynchronous, 8 in flight"] = asynchronous(world, 8).samples_per_s
        rows.append(row)
    return rows


def stragglers(settings: dict, quick: bool) -> list[dict]:
    """One gate so many times slower for a tenth of the time, five seconds at a time; one hall."""
    rows = []
    for factor in (1, 2, 5):
        slow = [Slowdown("gate/3", factor, share=0.1, phase_s=5.0)] if factor > 1 else []
        world = World(**settings, link=PRESETS["zone"], seconds=600 if quick else 3600, slowdowns=slow)
        rows.append({"factor": factor, **{o.schedule: o.samples_per_s for o in compare(world, 16, 32)}})
    return rows


def churn(settings: dict, quick: bool) -> list[dict]:
    """Some gate crashes every so often and is back five seconds later, with a checkpoint every five."""
    rows = []
    for every_s in (10, 60, 600):
        crash = Crash(who="gate/*", every_s=every_s, back_after_s=5)
        world = World(**settings, link=PRESETS["zone"], seconds=1200 if quick else 7200, faults=[crash],
                      checkpoint_every_s=5)  # fmt: skip
        outcomes = compare(world, 16, 32, ("one device", "gpipe", "1f1b", "asynchronous"))
        row = {"every_s": every_s, **{o.schedule: o.samples_per_s for o in outcomes}}
        row["lost batches"], row["redone samples"] = outcomes[-1].lost, outcomes[-1].redone
        rows.append(row)
    return rows


# ── scale ────────────────────────────────────────────────────────────────────────────────────────────


def scale(quick: bool) -> list[dict]:
    """Dry rows with very many gates and very many sentinels: events a second, and memory."""
    rows = []
    cost = Cost(forward_s=0.001, backward_s=0.002)
    sizes = ((10, 100, 10, 30.0), (100, 100, 10, 30.0), (1000, 100, 10, 12.0), (10, 10_000, 1, 60.0))
    for count, sentinels, in_flight, seconds in sizes:
        world = World(costs=[cost] * count, link=Link(0.001), bytes_between=1000,
                      seconds=seconds / 4 if quick else seconds)  # fmt: skip
        began_s = time.perf_counter()
        outcome = asynchronous(world, in_flight, sentinels)
        took_s = time.perf_counter() - began_s
        rows.append(
            {
                "gates": count,
                "sentinels": sentinels,
                "events": outcome.events,
                "events_per_s": outcome.events / took_s,
                "us_per_event": 1e6 * took_s / outcome.events,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    return rows


# ── all of it ────────────────────────────────────────────────────────────────────────────────────────


def table(title: str, rows: list[dict]) -> str:
    """Rows as Markdown."""
    names = list(rows[0])
    lines = [f"\n### {title}\n", f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for row in rows:
        cells = (f"{v:,.3g}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else v
                 for v in row.values())  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a minute's look")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--only", default="prediction,internet,stragglers,churn,scale")
    arguments = parser.parse_args()
    chosen, quick = arguments.only.split(","), arguments.quick
    found: dict = {"machine": f"{platform.processor() or platform.machine()}, torch {torch.__version__}"}
    if "prediction" in chosen:
        found["prediction"] = prediction(quick)
        print(table("Prediction against reality", found["prediction"]), flush=True)
    if {"internet", "stragglers", "churn"} & set(chosen):
        world, found["transformer"] = transformer_world(quick)
        print(table("A char-transformer's gate, measured", [found["transformer"]]), flush=True)
        for name, study, title in (
            ("internet", internet, "Over the internet: samples per second"),
            ("stragglers", stragglers, "A straggler: samples per second"),
            ("churn", churn, "Churn: samples per second, kept"),
        ):
            if name in chosen:
                found[name] = study(world, quick)
                print(table(title, found[name]), flush=True)
    if "scale" in chosen:
        found["scale"] = scale(quick)
        print(table("Scale, dry", found["scale"]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
