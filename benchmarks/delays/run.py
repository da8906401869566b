"""Rules for stale gradients at exact delays: a table and figures for each task, from one process.

python benchmarks/delays/run.py STUDY [--quick] [--json FILE] [--out DIR]      AKKORDEON_DATA has the data

Every rule and delay has the learning rate that suits it, chosen on seeds of its own from one grid. Runs are
kept in ``--out``: given again, a study goes on.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from akkordeon.experiments.laboratory.arm import Arm, Outcome
from akkordeon.experiments.laboratory.figures import draw
from akkordeon.experiments.laboratory.study import Compared, Design, Study
from akkordeon.experiments.tasks.loader import load_task

sys.path.insert(0, str(Path(__file__).parents[1]))
import figures

RULES = ("stash", "inverse", "delay-adaptive", "annealed", "gap-aware", "dc-adaptive", "prediction")
MOMENTUM = tuple(f"{rule}/momentum" for rule in (*RULES, "prediction-decayed", "latest"))
GPT = (
    *(f"{rule}/adamw" for rule in ("stash", "prediction", "dc-adaptive", "annealed", "gap-aware")),
    "stash/nadam",
    "stash/muon",
    "prediction/muon",
    "stash/muon-ef",
)
RATES = (0.003, 0.01, 0.03, 0.1)
GPT_RATES = (0.0003, 0.001, 0.003, 0.01)
STUDIES = {
    "mlp": Design("mlp", MOMENTUM, (0, 1, 2, 4, 8, 16), RATES, "fixed", steps=1000, seeds=5),
    "deep-mlp": Design("deep_mlp", MOMENTUM, (0, 4, 19), RATES, "per-stage", steps=1000, seeds=3),
    "lenet": Design("lenet", MOMENTUM, (0, 1, 3), RATES, "per-stage", steps=1000, seeds=3),
    "quadratic": Design("quadratic", MOMENTUM, (0, 1, 2, 4, 8, 16), RATES, "fixed", steps=1000, seeds=3),
    "char-gpt": Design("char_gpt", GPT, (0, 1, 3, 7), GPT_RATES, "per-stage", steps=600, seeds=3),
    "char-gpt-decay": Design(
        "char_gpt", (GPT[0], GPT[1], "stash/nadam"), (0, 3, 7), GPT_RATES, "per-stage", 600, 3, decay=True
    ),
    "char-gpt-warm-up": Design(
        "char_gpt", (GPT[0], GPT[1]), (0, 3, 7), GPT_RATES, "per-stage", steps=600, seeds=3, warm_up=300
    ),
}


def told(arm: Arm, outcome: Outcome) -> None:
    """Say on the way what came of a run."""
    print(f"{arm.method} τ={arm.delay} lr={arm.lr:g} seed {arm.seed}: {outcome.loss:.4f}", file=sys.stderr)


def row(cell: Compared) -> dict[str, Any]:
    """The figures of a method at a delay."""
    mean, spread = cell.of("validation")
    step_s = sorted(outcome.step_s for outcome in cell.outcomes)[len(cell.outcomes) // 2]
    return {
        "method": cell.method,
        "delay": cell.delay,
        "lr": cell.lr,
        "at_edge": cell.at_edge,
        "validation": mean,
        "sd": spread,
        "scores": [dict(outcome.scores) for outcome in cell.outcomes],
        "copies": max(max(outcome.copies) for outcome in cell.outcomes),
        "step_ms": 1000 * step_s,
    }


def main() -> None:
    parser = figures.options(__doc__, quick="a tenth of the steps, one seed, the shortest and longest delay")
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--methods", help="only these, as in stash/adamw,stash/muon")
    parser.add_argument("--out", type=Path, help="where runs are kept; comparison-STUDY if not given")
    options = parser.parse_args()
    torch.set_num_threads(1)
    design = STUDIES[options.study]
    if options.methods:
        design = replace(design, methods=tuple(options.methods.split(",")))
    if options.quick:
        ends = design.delays[0], design.delays[-1]
        design = replace(design, steps=design.steps // 10, seeds=1, delays=ends)
    out = options.out or Path(f"comparison-{options.study}{'-quick' * options.quick}")
    out.mkdir(parents=True, exist_ok=True)
    tasks = Path(__file__).parent / "tasks.py"
    study = Study(
        lambda seed: load_task(f"{tasks}:{design.task}", seed=seed), design, out / "arms.jsonl", told
    )
    cells = list(study.cells())
    draw(cells, out)
    rows = [row(cell) for cell in cells]
    base = {each["method"]: each["validation"] for each in rows if each["delay"] == 0}
    for each in rows:
        each["of_no_delay"] = each["validation"] / base[each["method"]]
        print(
            f"{each['method']:28s} τ {each['delay']:2d}  {each['validation']:.4f} ± {each['sd']:.4f}"
            f"  {each['of_no_delay']:.3f} ×  lr {each['lr']:g}{'*' * each['at_edge']}"
            f"  {each['copies']} copies  {each['step_ms']:.2f} ms",
            file=sys.stderr,
        )
    figures.tell({"study": options.study, "steps": design.steps, "rows": rows}, options.json)


if __name__ == "__main__":
    main()
