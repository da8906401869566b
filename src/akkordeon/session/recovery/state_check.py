"""Whether what was read from files can be gone on from, before anybody tries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from akkordeon.core.errors import DataError
from akkordeon.session.recovery.checkpoint import Checkpoint

__all__ = ["require_whole"]

Form = Any
"""A type, or COUNT; a dict of forms by key, or ``{str: form}`` for one with any keys; ``[form]`` for a list
of any length, or a tuple of forms for one of that length; or :class:`Maybe`."""


@dataclass(frozen=True)
class Maybe:
    """None, or something of a form."""

    form: Form


COUNT = "a number of at least 0"
PLACE = (COUNT, COUNT)

SUMS = {
    "number": COUNT,
    "samples": COUNT,
    "refused": COUNT,
    "staleness": [(COUNT,) * 3],
    "board": {"samples": COUNT, "loss": float, "scores": {str: float}},
}
TRAINER = {
    "number": COUNT,
    "position": {"place": PLACE, "done": [PLACE]},
    "source": Maybe({"place": PLACE}),
    "batches": (COUNT,) * 4,
    "samples_sent": COUNT,
    "samples_trained": COUNT,
    "epochs": COUNT,
    "epoch": Maybe(SUMS),
    "seconds": float,
    "left": Maybe(COUNT),
}
KNOWN = {"next": COUNT, "missing": [COUNT]}
"""Batches ahead of a trainer that another has trained."""

DRIFT = {"alarms": [COUNT]}
"""Of streams that are watched; the others have none."""

VALIDATOR = {
    "rounds": COUNT,
    "cuts": COUNT,
    "versions": [COUNT],
    "best": Maybe(float),
    "without_better": COUNT,
    "due": bool,
    "last": bool,
}
KEEPER = {"rounds": COUNT, "random": Maybe(Tensor), "due": bool}
SENTINEL = {
    "role": str,
    "address": str,
    "before": COUNT,
    "data": {str: object},
    "best_kept": Maybe({"round": COUNT, "value": float, "states": {str: {str: Tensor}}}),
}
EXAMPLE = {
    "number": COUNT,
    "x": object,
    "key": Maybe(object),
    "y": object,
    "is_labelled": bool,
    "is_predicted": bool,
    "outputs": object,
    "due": Maybe(COUNT),
    "records": [COUNT],
}
SCORES = {
    "examples": COUNT,
    "unscored": COUNT,
    "sums": {str: float},
    "window": [(COUNT, {str: float})],
    "faded": {str: float},
    "weight": float,
}
LABELS = {"waiting": [EXAMPLE], "keys": [(object, bool)], "count": (COUNT,) * 3}
STREAM = TRAINER | {
    "stream": {
        "over": bool,
        "examples": COUNT,
        "time": COUNT,
        "cuts": COUNT,
        "scores": SCORES,
        "labels": LABELS,
        "receipts": {"waits": bool, "open": [(COUNT, {str: object})]},
        "to_predict": [EXAMPLE],
        "to_train": [EXAMPLE],
        "events": [list],
    }
}
ROLES = {"train": TRAINER, "stream": STREAM, "validate": VALIDATOR, "checkpoint": KEEPER}

SESSION = {"seed": int, "epochs_done": COUNT, "random": Maybe(Tensor)}
LEARNER = {
    "optimizer": Maybe({"state": {str: {str: object}}, "groups": [{"params": [str]}]}),
    "scheduler": Maybe({str: object}),
    "rule": {str: Tensor},
    "updates": COUNT,
    "kinds": {str: Maybe(str)},
}
GATHERED = {"sums": {str: Tensor}, "batches": [(str, COUNT)]}
"""Of gates that accumulate; the others have none."""
AVERAGE = {"weights": {str: Tensor}, "updates": COUNT}
"""Of gates that average their weights; the others have none."""
EARLIER = {"weights": {str: Tensor}}
"""Of gates that compute on the version before the latest, or on what they expect; the others have none."""
CLIPPING = {"squared_norm": float, "whole_norm": float}
"""Of gates that clip the norm of the whole gradient; the others have none."""


def require_whole(checkpoint: Checkpoint) -> None:
    """Refuse what nobody could go on from.

    Raises:
        DataError: something is missing, or of another type.
    """
    _require(checkpoint.number, COUNT, "its number")
    _require(checkpoint.session, SESSION, "the session")
    _require(checkpoint.sentinels, {str: SENTINEL}, "the sentinels")
    for name, state in checkpoint.sentinels.items():
        _require(state, ROLES.get(state["role"], {}), name)
        _require(state.get("known"), Maybe(KNOWN), f"what is known of {name}")
        _require(state.get("stream", {}).get("drift"), Maybe(DRIFT), f"what drift {name} has seen")
        if not state["address"].rpartition("#")[2].isdecimal():
            raise DataError(f"the address of {name} has no number")
        _require(state.get("counted"), Maybe(PLACE), f"where {name} counts updates from")
    for address, stage in checkpoint.stages.items():
        _require(stage.version, COUNT, f"the version of {address}")
        _require(stage.learner, Maybe(LEARNER), f"what {address} learns with")
        learner = stage.learner or {}
        _require(learner.get("gathered"), Maybe(GATHERED), f"what {address} has gathered")
        _require((learner.get("gathered") or {}).get("samples"), Maybe(COUNT), f"the samples of {address}")
        _require(learner.get("average"), Maybe(AVERAGE), f"the average of {address}")
        _require(learner.get("earlier"), Maybe(EARLIER), f"the version of {address} before the latest")
        _require(learner.get("expected"), Maybe(EARLIER), f"what {address} expected of its latest version")
        _require(learner.get("frozen"), Maybe(bool), f"whether {address} is frozen")
        _require(learner.get("boost"), Maybe((float, COUNT)), f"the boost of {address}")
        _require(learner.get("clipping"), Maybe(CLIPPING), f"the norms of {address}")


def _require(value: Any, form: Form, what: str) -> None:
    if isinstance(form, Maybe):
        if value is not None:
            _require(value, form.form, what)
    elif isinstance(form, list | tuple):
        _require_type(value, list, what)
        forms = form * len(value) if isinstance(form, list) else form
        if len(value) != len(forms):
            raise DataError(f"{what} has {len(value)} parts instead of {len(forms)}")
        for each, part in zip(value, forms, strict=True):
            _require(each, part, what)
    elif isinstance(form, dict):
        _require_type(value, dict, what)
        for key, part in (dict.fromkeys(value, form[str]) if str in form else form).items():
            _require_type(key, str, f"a key of {what}")
            if key not in value:
                raise DataError(f"{key} of {what} is missing")
            _require(value[key], part, f"{key} of {what}")
    elif form == COUNT:
        _require_type(value, int, what)
        if value < 0:
            raise DataError(f"{what} is {value}")
    else:
        _require_type(value, form, what)


def _require_type(value: Any, kind: type, what: str) -> None:
    wanted = (int, float) if kind is float else kind
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind not in (bool, object)):
        raise DataError(f"{what} is a {type(value).__name__}")
