"""Trains PyTorch models with actors: a row of gates, each with its own optimizer; nobody waits."""

import typing

from akkordeon.core import errors
from akkordeon.core.errors import AkkordeonError
from akkordeon.core.schedules import Async, Flush, TwoBuffers
from akkordeon.core.streams.messages import Answer, Labelled, Question
from akkordeon.data.batches import Batches
from akkordeon.data.streams.columns import Columns
from akkordeon.data.streams.growing import GrowingFile
from akkordeon.data.streams.lines import Lines
from akkordeon.data.streams.redis import RedisStream
from akkordeon.downpour.delayed_nesterov import DelayedNesterov
from akkordeon.downpour.recipe import Downpour
from akkordeon.engines.ray import Ray
from akkordeon.engines.simulator.engine import Simulator
from akkordeon.engines.threads import Threads
from akkordeon.experiments.planning.machines import Machine, Machines, MessageCost
from akkordeon.experiments.planning.plan import Plan, auto, plan
from akkordeon.experiments.report.report import report
from akkordeon.experiments.run import resume, run
from akkordeon.experiments.tasks.task import Task
from akkordeon.pipeline import nn
from akkordeon.pipeline.gate import Gate
from akkordeon.pipeline.learning.groups import decay_groups
from akkordeon.pipeline.network import Network
from akkordeon.pipeline.optimizers.basis_rotation import basis_rotation
from akkordeon.pipeline.optimizers.error_feedback import ErrorFeedback
from akkordeon.pipeline.optimizers.muon import muon
from akkordeon.pipeline.optimizers.ordered_momentum import OrderedMomentum
from akkordeon.pipeline.recovery.recipe import Recovery
from akkordeon.pipeline.staleness.age_weighted import AgeWeighted
from akkordeon.pipeline.staleness.delay_compensation import DelayCompensation
from akkordeon.pipeline.staleness.discrepancy_correction import DiscrepancyCorrection
from akkordeon.pipeline.staleness.gap_aware import GapAware
from akkordeon.pipeline.staleness.kept_weights import Latest, Stash
from akkordeon.pipeline.staleness.prediction import Prediction
from akkordeon.pipeline.staleness.rule import Rule
from akkordeon.pipeline.staleness.smaller_steps import AnnealedSteps, DelayAdaptive, InverseStaleness
from akkordeon.pipeline.staleness.vertical_sync import VerticalSync
from akkordeon.sentinels.recipes import Best, Sentinel
from akkordeon.sentinels.scores import accuracy
from akkordeon.sentinels.streaming.drift import Drift, MoreLearning, ResetOptimizers, Shadow
from akkordeon.session.attachment import Attachment
from akkordeon.session.downpour_session import Attachments, DownpourSession
from akkordeon.session.records.replay import replay
from akkordeon.session.remote_session import connect
from akkordeon.session.serving.limits import Limits
from akkordeon.session.serving.posts import Posts
from akkordeon.session.session import Session
from akkordeon.watch.sinks.prometheus import Prometheus
from akkordeon.watch.sinks.tensorboard import TensorBoard
from akkordeon.watch.sinks.tracker import Tracker

__all__ = [
    "AgeWeighted",
    "AkkordeonError",
    "AnnealedSteps",
    "Answer",
    "Async",
    "Attachment",
    "Attachments",
    "Batches",
    "Best",
    "Columns",
    "DelayAdaptive",
    "DelayCompensation",
    "DelayedNesterov",
    "DiscrepancyCorrection",
    "Downpour",
    "DownpourSession",
    "Drift",
    "ErrorFeedback",
    "Flush",
    "GapAware",
    "Gate",
    "GrowingFile",
    "InverseStaleness",
    "Labelled",
    "Latest",
    "Limits",
    "Lines",
    "Machine",
    "Machines",
    "MessageCost",
    "MoreLearning",
    "Network",
    "OrderedMomentum",
    "Plan",
    "Posts",
    "Prediction",
    "Prometheus",
    "Question",
    "Ray",
    "Recovery",
    "RedisStream",
    "ResetOptimizers",
    "Rule",
    "Sentinel",
    "Session",
    "Shadow",
    "Simulator",
    "Stash",
    "Task",
    "TensorBoard",
    "Threads",
    "Tracker",
    "TwoBuffers",
    "VerticalSync",
    "accuracy",
    "auto",
    "basis_rotation",
    "connect",
    "decay_groups",
    "errors",
    "muon",
    "nn",
    "plan",
    "replay",
    "report",
    "resume",
    "run",
]

if typing.TYPE_CHECKING:
    from akkordeon.session import river as river
else:

    def __getattr__(name: str) -> object:
        """``akkordeon.river`` is loaded when it is asked for, as it needs the extra of that name."""
        if name == "river":
            from importlib import import_module

            return import_module("akkordeon.session.river")
        raise AttributeError(f"module 'akkordeon' has no attribute {name!r}")
