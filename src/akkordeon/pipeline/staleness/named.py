"""The rules that go by a name."""

from __future__ import annotations

from akkordeon.pipeline.staleness.age_weighted import AgeWeighted
from akkordeon.pipeline.staleness.delay_compensation import DelayCompensation
from akkordeon.pipeline.staleness.discrepancy_correction import DiscrepancyCorrection
from akkordeon.pipeline.staleness.gap_aware import GapAware
from akkordeon.pipeline.staleness.kept_weights import Latest, Stash
from akkordeon.pipeline.staleness.prediction import Prediction
from akkordeon.pipeline.staleness.rule import Rule
from akkordeon.pipeline.staleness.smaller_steps import AnnealedSteps, DelayAdaptive, InverseStaleness

__all__ = ["RULES"]

RULES: dict[str, Rule] = {
    "latest": Latest(),
    "stash": Stash(),
    "inverse": InverseStaleness(),
    "delay-adaptive": DelayAdaptive(),
    "age-weighted": AgeWeighted(),
    "annealed": AnnealedSteps(),
    "gap-aware": GapAware(),
    "prediction": Prediction(),
    "prediction-decayed": Prediction(decay=0.9),
    "discrepancy": DiscrepancyCorrection(),
    "pipemare": DiscrepancyCorrection(annealed=1000),
    "dc-constant": DelayCompensation("constant"),
    "dc-adaptive": DelayCompensation("adaptive"),
}
"""Each rule by its name, on the command line and in files; to shards, those that keep weights are offered."""
