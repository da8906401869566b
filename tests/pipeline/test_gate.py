"""A gate, driven by hand: what it keeps, what it refuses, and that a refusal leaves it as it was."""

from __future__ import annotations

import copy
import traceback
from typing import NamedTuple

import pytest
import torch
from tests.support.harness import (
    SIZE,
    backward,
    bits,
    breaking,
    do,
    forward,
    gate_alone,
    reports,
    same_bits,
    sends,
    sgd,
    stops,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import akkordeon as ak
from akkordeon.core.actor import Send
from akkordeon.core.errors import ForeignParameterError, RecipeError
from akkordeon.core.messages import (
    Backward,
    Batch,
    Close,
    Cut,
    CutId,
    Due,
    Evaluate,
    Export,
    Exported,
    Fault,
    Forget,
    Forward,
    Probe,
    Refused,
    Release,
    Watch,
)
from akkordeon.core.reports import GateLeft, GateStatus
from akkordeon.pipeline.refusals.actor import FORGOTTEN_MAX

CUT = CutId("v", 0)
NAN = float("nan")


def normed() -> nn.Module:
    """A module with weights, buffers and randomness."""
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), ak.nn.Dropout(0.3), nn.Linear(5, 4))


def x_of(size: int = SIZE) -> Tensor:
    return torch.randn(size, 6)


def everything(gate) -> dict:
    """All that a refusal must leave as it was."""
    return {
        "state": bits(gate.module),
        "weights": gate.weights.now,
        "masters": [m.detach().clone() for m in gate.weights.masters],
        "buffers": gate.buffers.now,
        "stash": dict(gate.stash),
        "pins": dict(gate.pins),
        "version": gate.version,
        "seen": dict(gate.staleness_seen),
        "optimizer": copy.deepcopy(gate._updater._optimizer.state_dict()),
        "training": gate.module.training,
    }


def is_as_it_was(gate, was: dict) -> bool:
    now = everything(gate)
    return (
        same_bits(now["state"], was["state"])
        and now["weights"] is was["weights"]
        and all(torch.equal(a, b) for a, b in zip(now["masters"], was["masters"], strict=True))
        and all(a is b for a, b in zip(now["buffers"].values(), was["buffers"].values(), strict=True))
        and repr(now["optimizer"]) == repr(was["optimizer"])
        and all(now[name] == was[name] for name in ("stash", "pins", "version", "seen", "training"))
    )


# ── what it does ─────────────────────────────────────────────────────────────────────────────────────


def test_a_forward_is_stashed_and_goes_on_detached_in_training_mode():
    gate, x = gate_alone(nn.Linear(6, 4)), x_of()
    (effect,) = do(gate, forward(0, x))
    assert isinstance(effect, Send)
    assert effect.to == "gate/2"
    assert torch.equal(effect.message.payload, gate.module(x))
    assert not effect.message.payload.requires_grad
    assert list(gate.stash) == [Batch("s", 0)]
    assert gate.module.training


def test_the_gradient_goes_on_before_the_weights_move():
    gate, x, g = gate_alone(nn.Linear(6, 4)), x_of(), torch.randn(SIZE, 4)
    was, before = bits(gate.module), gate.weights.now[0].detach().clone()
    do(gate, forward(0, x))
    effects = gate.receive(Backward(Batch("s", 0), g, (3,)), 0.0)
    effect = next(effects)
    assert effect.to == "gate/0"
    assert torch.allclose(effect.message.payload, g @ before)
    assert effect.message.staleness == (3, 0)
    assert same_bits(gate.module, was)
    assert list(effects) == []
    assert not same_bits(gate.module, was)
    assert gate.version == 1
    assert not gate.stash


def test_the_first_gate_answers_the_sentinel_and_sends_no_gradient_and_so_does_the_last():
    gate = gate_alone(nn.Linear(6, 4), position={"previous": None, "next": None})
    (out,) = do(gate, forward(0, x_of()))
    (back,) = do(gate, backward(0, torch.randn(SIZE, 4)))
    assert (out.to, back.to) == ("s", "s")
    assert back.message.payload is None
    assert gate.version == 1


def test_staleness_is_the_updates_between_a_forward_and_its_backward():
    gate = gate_alone(nn.Linear(6, 4))
    do(gate, *(forward(n, x_of()) for n in range(3)))
    seen = [sends(do(gate, backward(n, torch.randn(SIZE, 4))))[0].staleness for n in (0, 2, 1)]
    assert seen == [(0,), (1,), (2,)]
    assert gate.staleness_seen == {0: 1, 1: 1, 2: 1}


def test_batches_of_two_sentinels_with_the_same_number_are_two_batches():
    gate = gate_alone(nn.Linear(6, 4))
    assert not sends(do(gate, forward(0, x_of(), "a"), forward(0, x_of(), "b")), Refused)
    assert list(gate.stash) == [Batch("a", 0), Batch("b", 0)]


def test_the_recipe_is_left_alone():
    module = nn.Linear(6, 4)
    was, gate = bits(module), gate_alone(module)
    do(gate, forward(0, x_of()), backward(0, torch.randn(SIZE, 4)))
    assert same_bits(module, was)
    assert not same_bits(gate.module, was)


# ── any payload ──────────────────────────────────────────────────────────────────────────────────────


class Two(nn.Module):
    """Takes (floats, numbers), gives two outputs."""

    def __init__(self, form):
        super().__init__()
        self.linear, self.form = nn.Linear(6, 4), form

    def forward(self, both):
        x, n = both.values() if isinstance(both, dict) else both
        y = self.linear(x)
        return {"y": y, "n": n} if self.form is dict else self.form([y, n])


@pytest.mark.parametrize("form", [tuple, list, dict])
def test_tuples_and_dicts_go_in_and_out_and_integers_get_none_for_a_gradient(form):
    gate, x, n = gate_alone(Two(form)), x_of(), torch.arange(SIZE)
    payload = {"x": x, "n": n} if form is dict else form([x, n])
    (out,) = sends(do(gate, forward(0, payload)))
    assert type(out.payload) is form
    g = torch.randn(SIZE, 4)
    gradient = {"y": g, "n": None} if form is dict else (g, None)
    weight = gate.weights.now[0].detach().clone()
    (back,) = sends(do(gate, backward(0, gradient)))
    by_input = list(back.payload.values()) if form is dict else back.payload
    assert torch.allclose(by_input[0], g @ weight)
    assert by_input[1] is None
    assert gate.version == 1


def test_integer_inputs_of_an_embedding_need_no_gradient():
    gate = gate_alone(nn.Embedding(11, 4))
    do(gate, forward(0, torch.randint(11, (SIZE,))))
    (back,) = sends(do(gate, backward(0, torch.randn(SIZE, 4))))
    assert back.payload is None
    assert gate.version == 1


def test_a_sparse_gradient_trains_an_embedding():
    gate = gate_alone(nn.Embedding(11, 4, sparse=True), lambda params: torch.optim.SGD(params, lr=1.0))
    before = gate.weights.now[0].detach().clone()
    do(gate, forward(0, torch.tensor([3, 3])), backward(0, torch.ones(2, 4)))
    moved = before - gate.weights.now[0].detach()
    assert torch.allclose(moved[3], torch.full((4,), 2.0))
    assert moved.abs().sum() == pytest.approx(8.0)


@pytest.mark.parametrize("gradient", [None, (None, None)])
def test_without_any_gradient_the_batch_goes_on_and_the_weights_stay(gradient):
    module = Two(tuple)
    gate = gate_alone(module)
    was = bits(gate.module)
    do(gate, forward(0, (x_of(), torch.arange(SIZE))))
    (back,) = sends(do(gate, backward(0, gradient)))
    assert back.payload == (None, None)
    assert gate.version == 1
    assert same_bits(gate.module, was)


def test_a_gate_without_parameters_passes_gradients_on_and_counts_versions():
    gate = gate_alone(nn.ReLU(), optimizer=None)
    do(gate, forward(0, torch.tensor([-1.0, 2.0])))
    (back,) = sends(do(gate, backward(0, torch.tensor([5.0, 5.0]))))
    assert back.payload.tolist() == [0.0, 5.0]
    assert gate.version == 1


def test_an_in_place_first_layer_leaves_what_was_sent_as_it_was():
    gate = gate_alone(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 4)))
    for n in range(3):
        x = x_of()
        was = x.clone()
        (out,) = sends(do(gate, forward(n, x)))
        assert torch.equal(x, was)
        assert torch.equal(out.payload, gate.module(was.clone()))
        assert len(sends(do(gate, backward(n, torch.randn(SIZE, 4))), Backward)) == 1


class Sometimes(nn.Module):
    """Writes to its input where that begins with a positive number; gives twice the input in any case."""

    def forward(self, x):
        first = x[0] if isinstance(x, tuple) else x
        if first[0, 0] > 0:
            first.mul_(2)
            return x
        return (first * 2, *x[1:]) if isinstance(x, tuple) else x * 2


@pytest.mark.parametrize("previous", [None, "gate/0"])
def test_a_module_may_work_in_place_on_some_inputs_only(previous):
    gate = gate_alone(
        nn.Sequential(nn.BatchNorm1d(2), nn.Identity(), Sometimes()), position={"previous": previous}
    )
    direct = gate_alone(Sometimes(), position={"previous": previous})
    for n, sign in enumerate((-1, 1, 1, -1)):
        do(gate, forward(n, sign * torch.rand(4, 2)))
        (out,) = sends(do(direct, forward(n, torch.full((2, 2), float(sign)))), Forward)
        assert torch.equal(out.payload, torch.full((2, 2), 2.0 * sign))
        (back,) = sends(do(direct, backward(n, torch.ones(2, 2))), Backward)
        assert (
            back.payload is None if previous is None else torch.equal(back.payload, torch.full((2, 2), 2.0))
        )
    assert gate.module[0].num_batches_tracked == 4


def test_a_module_that_begins_to_write_to_whole_numbers_is_refused_once():
    gate = gate_alone(Sometimes())
    do(gate, forward(0, -torch.ones(2, 2, dtype=torch.long)))
    assert (
        "in place on some inputs only" in refusal(gate, forward(1, torch.ones(2, 2, dtype=torch.long))).reason
    )
    (out,) = sends(do(gate, forward(2, torch.ones(2, 2, dtype=torch.long))), Forward)
    assert out.payload.tolist() == [[2, 2], [2, 2]]


def test_a_module_that_writes_to_one_of_two_inputs_that_share_memory_is_refused():
    """In a plain loop the other would change as well, and here it is a copy; one tensor twice stays one."""
    x = torch.ones(2, 2)
    gate = gate_alone(Sometimes())
    assert "share memory" in refusal(gate, forward(0, (x, x.view(2, 2)))).reason
    assert "share memory" in refusal(gate, forward(1, (x, x[:1]))).reason
    (out,) = sends(do(gate, forward(3, (x, x))), Forward)
    assert all(part.tolist() == [[2, 2], [2, 2]] for part in out.payload)
    assert not sends(do(gate, forward(2, (x, x.clone()))), Refused)


class Changes(nn.Module):
    """Puts its result into the container it was given."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, both):
        where = "h" if isinstance(both, dict) else 0
        both[where] = self.linear(both[where])
        if isinstance(both, dict):
            both["more"] = both["h"] * 2
        return both


@pytest.mark.parametrize("form", [dict, list])
def test_a_module_may_change_the_container_it_is_given(form):
    """From the second payload on that container was the one in the stash, and the gradient the identity's."""
    gate = gate_alone(Changes())
    for n in range(3):
        x, g = x_of(), torch.randn(SIZE, 6)
        payload = {"h": x} if form is dict else [x]
        weight = gate.weights.now[0].detach().clone()
        (out,) = sends(do(gate, forward(n, payload)))
        (sent,) = payload.values() if form is dict else payload
        assert sent is x
        (back,) = sends(do(gate, backward(n, {"h": g, "more": None} if form is dict else [g])))
        (by_input,) = back.payload.values() if form is dict else back.payload
        assert torch.allclose(by_input, g @ weight)
        assert len(out.payload) == (2 if form is dict else 1)


class Fork(NamedTuple):
    h: Tensor
    extra: tuple | None


def test_a_named_tuple_with_nothing_and_with_tuples_inside_goes_in_and_out():
    class Named(nn.Module):
        def forward(self, fork):
            return Fork(fork.h * 3, None if fork.extra is None else (fork.extra[0] * 5, fork.extra[1]))

    gate = gate_alone(Named(), optimizer=None)
    for n, extra in enumerate((None, (torch.ones(2), torch.arange(2)))):
        (out,) = sends(do(gate, forward(n, Fork(torch.ones(2), extra))))
        assert type(out.payload) is Fork
        gradient = Fork(torch.ones(2), None if extra is None else (torch.ones(2), None))
        (back,) = sends(do(gate, backward(n, gradient)))
        assert back.payload.h.tolist() == [3.0, 3.0]
        assert back.payload.extra is None if extra is None else back.payload.extra[0].tolist() == [5.0, 5.0]
    assert "a payload holds tensors alone; got int" in refusal(gate, forward(9, (torch.ones(2), 3))).reason


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (None, "a payload is a tensor, or a tuple, list or dict of tensors; got NoneType"),
        ((torch.ones(2), "red"), "a payload holds tensors alone; got str inside it"),
        ({}, "there is no tensor in it"),
    ],
)
def test_an_output_that_cannot_travel_is_told_as_one(given, sentence):
    class Gives(nn.Module):
        def forward(self, x):
            return given

    gate = gate_alone(Gives(), optimizer=None)
    do(gate, Cut(CUT))
    for message in (forward(0, x_of()), Evaluate(Batch("v", 0), x_of(), CUT)):
        why = f"the output of its module for float32 (8, 6) cannot travel: {sentence}"
        assert refusal(gate, message).reason == why


class Spoils(nn.Embedding):
    """Gives an embedding whose gradient is not a number."""

    def forward(self, x):
        y = super().forward(x)
        y.register_hook(lambda gradient: gradient * NAN)
        return y


@pytest.mark.parametrize("sparse", [False, True])
def test_a_gradient_of_an_embedding_that_is_not_finite_is_refused(sparse):
    gate = gate_alone(Spoils(11, 4, sparse=sparse))
    was = bits(gate.module)
    do(gate, forward(0, torch.tensor([3, 3])))
    assert refusal(gate, backward(0, torch.ones(2, 4))).fault is Fault.NOT_FINITE
    assert same_bits(gate.module, was)


# ── modes and masks ──────────────────────────────────────────────────────────────────────────────────


def modes(module: nn.Module) -> list[bool]:
    return [part.training for part in module.modules()]


def test_parts_in_evaluation_mode_stay_in_it_also_after_an_evaluation():
    """They were put into training mode: frozen statistics moved, and a dropout that was off was on."""
    module = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 4))
    module[1].eval()
    module[2].eval()
    was, gate = modes(module), gate_alone(module)
    assert modes(gate.module) == was
    do(gate, forward(0, x_of()), backward(0, torch.randn(SIZE, 4)))
    do(gate, Cut(CUT), Evaluate(Batch("v", 0), x_of(), CUT))
    assert modes(gate.module) == was
    assert gate.module[1].num_batches_tracked == 0
    gate.module[3].eval()  # as a module may do by itself, after so many steps
    do(gate, Evaluate(Batch("v", 1), x_of(), CUT))
    assert modes(gate.module) == [True, True, False, False, False]


def test_a_module_loaded_in_evaluation_mode_is_trained_and_a_frozen_one_is_left_in_it():
    assert all(modes(gate_alone(normed().eval()).module))
    frozen = normed().eval().requires_grad_(False)
    assert not any(modes(gate_alone(frozen, optimizer=None).module))


class Reuses(nn.Module):
    """One dropout outside of checkpoints and in two of them."""

    def __init__(self, drop, checkpointed):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)
        self.drop, self.checkpointed = drop, checkpointed

    def forward(self, x):
        h = self.drop(self.a(x))
        for part in (self.middle, self.end):
            h = checkpoint(part, h, use_reentrant=False) if self.checkpointed else part(h)
        return h

    def middle(self, h):
        return self.drop(torch.tanh(self.b(self.drop(h))))

    def end(self, h):
        return self.c(self.drop(torch.tanh(h)))


@pytest.mark.parametrize("drop", [ak.nn.Dropout(0.5), nn.Dropout(0.5), ak.nn.DropConnectLinear(6, 6, 0.5)])
def test_a_random_module_used_in_and_outside_of_checkpoints_gives_its_masks_again(drop):
    """The recomputation of any call had the mask of the first one."""
    torch.manual_seed(3)
    plain = Reuses(drop, checkpointed=False)
    saving = copy.deepcopy(plain)
    saving.checkpointed = True
    batches = [(x_of(), torch.randn(SIZE, 4)) for _ in range(4)]
    ends = []
    for module in (plain, saving):
        gate = gate_alone(module)
        torch.manual_seed(4)
        for pair in (batches[:2], batches[2:]):
            for n, (x, _) in enumerate(pair):
                do(gate, forward(n, x))
            do(gate, Cut(CUT), Evaluate(Batch("v", 0), x_of(), CUT))
            for n, (_, g) in enumerate(pair):
                do(gate, backward(n, g))
        ends.append(bits(gate.module))
    assert same_bits(*ends)


def test_what_a_random_module_was_called_with_is_not_kept():
    gate = gate_alone(nn.Sequential(ak.nn.Dropout(0.5), nn.Linear(6, 4)))
    do(gate, forward(0, x_of()))
    assert gate.stash[Batch("s", 0)].marks == ((),)
    assert gate.module[0]._calls._first == ()


# ── what it refuses ──────────────────────────────────────────────────────────────────────────────────


def refusal(gate, message) -> Refused:
    """The only answer of the gate, which must be a refusal sent to the sentinel."""
    (effect,) = do(gate, message)
    assert effect.to == message.batch.sentinel
    assert isinstance(effect.message, Refused)
    assert effect.message.batch == message.batch
    assert effect.message.gate == gate.address
    return effect.message


def busy_gate(**position):
    """A gate with a history: two updates, one batch in flight, one cut pinned."""
    gate = gate_alone(normed(), position=position)
    for n in range(2):
        do(gate, forward(n, x_of()), backward(n, torch.randn(SIZE, 4)))
    do(gate, forward(2, x_of()), Cut(CUT))
    return gate


REFUSED = {
    "a wrong shape": (forward(9, torch.randn(SIZE, 7)), Fault.FORM),
    "a wrong dtype": (forward(9, torch.arange(SIZE)), Fault.FORM),
    "a wrong form": (forward(9, (x_of(), x_of())), Fault.FORM),
    "an output that is not finite": (forward(9, torch.full((SIZE, 6), NAN)), Fault.NOT_FINITE),
    "a batch twice": (forward(2, x_of()), Fault.UNKNOWN),
    "a backward of an unknown batch": (backward(9, torch.randn(SIZE, 4)), Fault.UNKNOWN),
    "a backward twice": (backward(1, torch.randn(SIZE, 4)), Fault.UNKNOWN),
    "a gradient of a wrong shape": (backward(2, torch.randn(SIZE, 5)), Fault.FORM),
    "a gradient of a wrong dtype": (backward(2, torch.randn(SIZE, 4).double()), Fault.FORM),
    "a gradient of a wrong form": (backward(2, (torch.randn(SIZE, 4),)), Fault.FORM),
    "a gradient that is not finite": (backward(2, torch.full((SIZE, 4), NAN)), Fault.NOT_FINITE),
}


@pytest.mark.parametrize("what", REFUSED)
def test_it_refuses_and_is_as_it_was_in_every_bit(what):
    message, fault = REFUSED[what]
    gate = busy_gate()
    was, random = everything(gate), torch.get_rng_state()
    assert refusal(gate, message).fault is fault
    assert is_as_it_was(gate, was)
    assert torch.equal(torch.get_rng_state(), random)
    assert gate.refusals == {fault: 1}


@pytest.mark.parametrize("what", REFUSED)
def test_after_a_refusal_it_goes_on_as_if_nothing_had_been(what):
    message, _ = REFUSED[what]
    # After a refused gradient the graph is gone, and the sentinel has the batch forgotten.
    rest = [Forget("s", 2), forward(3, x_of()), backward(3, torch.randn(SIZE, 4))]
    torch.manual_seed(5)
    disturbed = busy_gate()
    torch.manual_seed(5)
    quiet = busy_gate()
    do(disturbed, message)
    for gate in (disturbed, quiet):
        do(gate, *rest)
    assert same_bits(disturbed.module, quiet.module)


def test_refusals_say_what_came_and_what_was_expected():
    gate = busy_gate()
    wrong = refusal(gate, forward(9, torch.randn(SIZE, 7))).reason
    assert wrong.startswith("its module cannot work on float32 (8, 7) (RuntimeError: ")
    assert wrong.endswith("; it has worked on float32 (*, 6)")
    gradient = refusal(gate, backward(2, torch.randn(SIZE, 5))).reason
    assert gradient == "its gradient is float32 (8, 5), expected float32 (8, 4)"
    assert "\n" not in wrong


def test_more_batches_than_the_network_allows_are_refused():
    gate = busy_gate(max_in_flight=1)
    was = everything(gate)
    assert refusal(gate, forward(3, x_of())).fault is Fault.TOO_MANY
    assert is_as_it_was(gate, was)
    do(gate, backward(2, torch.randn(SIZE, 4)))
    assert not sends(do(gate, forward(4, x_of())), Refused)


def test_a_gradient_older_than_the_network_allows_is_refused():
    gate = busy_gate(max_staleness=1)
    do(gate, *(forward(n, x_of()) for n in (3, 4)))
    for n in (2, 3):
        do(gate, backward(n, torch.randn(SIZE, 4)))
    was = everything(gate)
    old = refusal(gate, backward(4, torch.randn(SIZE, 4)))
    assert old.fault is Fault.TOO_STALE
    assert old.reason == "it is 2 updates old, at most 1"
    assert is_as_it_was(gate, was)


def test_a_forward_that_raises_refuses_its_batch_with_the_error_and_leaves_the_buffers():
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.calls = nn.BatchNorm1d(6), 0

        def forward(self, x):
            self.calls += 1
            y = self.norm(x)
            if self.calls == 3:
                raise ZeroDivisionError("on the third")
            return y

    gate = gate_alone(Breaks())
    do(gate, forward(0, x_of()), forward(1, x_of()))
    was = bits(gate.module)
    refused = refusal(gate, forward(2, x_of()))
    assert refused.fault is Fault.RAISED
    assert refused.reason.startswith(
        "its module cannot work on float32 (8, 6) (ZeroDivisionError: on the third)"
    )
    assert isinstance(refused.error, ZeroDivisionError)
    assert "forward" in [frame.name for frame in traceback.extract_tb(refused.error.__traceback__)]
    assert same_bits(gate.module, was)
    assert not sends(do(gate, forward(3, x_of())), Refused)


def test_a_backward_that_raises_is_a_failure_and_leaves_weights_and_buffers():
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(6)

        def forward(self, x):
            return breaking(
                checkpoint(self.norm, x, use_reentrant=False), ZeroDivisionError("in the backward")
            )

    gate = gate_alone(Breaks())
    do(gate, forward(0, x_of()))
    was = bits(gate.module)
    with pytest.raises(ZeroDivisionError):
        do(gate, backward(0, x_of()))
    (left,) = reports(list(gate.last_words()), GateLeft)
    assert same_bits(left.state, was)


def test_an_optimizer_that_fails_leaves_the_last_weights_in_the_last_words():
    class HalfWay(torch.optim.SGD):
        def step(self, closure=None):
            self.param_groups[0]["params"][0].data.add_(1)
            raise ZeroDivisionError

    gate = gate_alone(nn.Linear(6, 4), lambda params: HalfWay(params, lr=0.1))
    was = bits(gate.module)
    do(gate, forward(0, x_of()))
    with pytest.raises(ZeroDivisionError):
        do(gate, backward(0, torch.randn(SIZE, 4)))
    (left,) = reports(list(gate.last_words()), GateLeft)
    assert same_bits(left.state, was)
    assert left.version == 0


def test_an_optimizer_over_foreign_parameters_is_refused_before_anything_runs():
    stranger = nn.Linear(6, 4)
    with pytest.raises(ForeignParameterError, match="gate/1"):
        gate_alone(nn.Linear(6, 4), lambda params: sgd(stranger.parameters()))


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ({"module": "linear"}, "a gate holds an nn.Module, got str"),
        ({"optimizer": sgd(nn.Linear(1, 1).parameters())}, "is a function from parameters to an optimizer"),
        ({"staleness": "stash"}, "is a rule such as"),
        ({"clip_norm": 0}, "clip_norm is above 0, got 0"),
        ({"clip_norm": "1"}, "clip_norm is above 0, got '1'"),
        ({"clip_norm": NAN}, "clip_norm is above 0, got nan"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(recipe, sentence):
    with pytest.raises(RecipeError, match=sentence):
        ak.Gate(**({"module": nn.Linear(6, 4)} | recipe))


# ── what it forgets ──────────────────────────────────────────────────────────────────────────────────


def test_a_forgotten_batch_is_dropped_from_the_stash_and_its_backward_is_ignored_in_silence():
    gate = gate_alone(nn.Linear(6, 4))
    do(gate, forward(0, x_of()), forward(1, x_of()))
    assert do(gate, Forget("s", 0)) == []
    assert list(gate.stash) == [Batch("s", 1)]
    assert do(gate, Forget("s")) == []
    assert not gate.stash
    was = bits(gate.module)
    assert do(gate, backward(1, torch.randn(SIZE, 4))) == []
    assert same_bits(gate.module, was)


def test_a_batch_that_is_still_on_its_way_when_it_is_forgotten_is_dropped_when_it_comes():
    gate = gate_alone(nn.Linear(6, 4))
    assert do(gate, Forget("s", 0), forward(0, x_of())) == []
    assert len(do(gate, forward(1, x_of()))) == 1
    assert do(gate, Forget("t"), forward(0, x_of(), "t"), forward(9, x_of(), "t")) == []
    assert list(gate.stash) == [Batch("s", 1)]


def test_forgetting_a_sentinel_takes_its_pins_and_its_watch_along():
    gate = gate_alone(nn.Linear(6, 4))
    do(gate, Cut(CUT), Cut(CutId("w", 0)), Watch("v", 1), Forget("v"))
    assert list(gate.pins) == [CutId("w", 0)]
    assert not sends(do(gate, forward(0, x_of()), backward(0, torch.randn(SIZE, 4))), Due)


def test_the_cut_of_a_forgotten_sentinel_travels_on_and_pins_nothing():
    gate = gate_alone(nn.Linear(6, 4))
    (passed,) = do(gate, Forget("v"), Cut(CUT, (5,)))
    assert passed.to == "gate/0"
    assert passed.message.versions == (5, 0)
    assert not gate.pins


def test_what_is_to_be_forgotten_is_bounded_and_the_oldest_goes_first():
    gate = gate_alone(nn.Linear(6, 4))
    do(gate, *(Forget("s", n) for n in range(FORGOTTEN_MAX + 1)))
    assert len(gate._forgotten) == FORGOTTEN_MAX
    assert len(do(gate, forward(0, x_of()))) == 1
    assert do(gate, forward(1, x_of())) == []


# ── cuts ─────────────────────────────────────────────────────────────────────────────────────────────


def trained_after_cut():
    gate = busy_gate()
    module = copy.deepcopy(gate.module).eval()
    pinned = bits(gate.module)
    do(gate, backward(2, torch.randn(SIZE, 4)))
    for n in (3, 4):
        do(gate, forward(n, x_of()), backward(n, torch.randn(SIZE, 4)))
    return gate, module, pinned


def test_a_cut_collects_versions_and_goes_to_the_gate_before_and_at_last_to_the_asker():
    (passed,) = do(gate_alone(nn.Linear(6, 4)), Cut(CUT, (7,)))
    assert (passed.to, passed.message) == ("gate/0", Cut(CUT, (7, 0)))
    (home,) = do(gate_alone(nn.Linear(6, 4), position={"previous": None}), Cut(CUT))
    assert home.to == "v"


def test_evaluation_uses_the_weights_and_buffers_of_the_cut_and_leaves_no_trace():
    gate, module, _ = trained_after_cut()
    x = x_of()
    was, random = everything(gate), torch.get_rng_state()
    (effect,) = do(gate, Evaluate(Batch("v", 0), x, CUT))
    assert effect.to == "gate/2"
    assert torch.equal(effect.message.payload, module(x))
    assert not torch.equal(effect.message.payload, copy.deepcopy(gate.module).eval()(x))
    assert is_as_it_was(gate, was)
    assert torch.equal(torch.get_rng_state(), random)


def test_the_last_gate_answers_the_sentinel_of_the_evaluation():
    gate = gate_alone(nn.Linear(6, 4), position={"next": None})
    do(gate, Cut(CUT))
    (effect,) = do(gate, Evaluate(Batch("v", 0), x_of(), CUT))
    assert effect.to == "v"


def test_an_evaluation_that_cannot_be_is_refused_and_leaves_no_trace():
    gate, _, _ = trained_after_cut()
    was = everything(gate)
    wrong = refusal(gate, Evaluate(Batch("v", 0), torch.randn(SIZE, 7), CUT))
    assert wrong.reason.startswith("its module cannot evaluate float32 (8, 7) (RuntimeError: ")
    assert is_as_it_was(gate, was)


def test_an_export_is_a_copy_of_what_was_pinned():
    gate, _, pinned = trained_after_cut()
    (effect,) = do(gate, Export(CUT))
    assert effect.to == "v"
    assert isinstance(effect.message, Exported)
    assert same_bits(effect.message.state, pinned)
    effect.message.state["0.weight"].zero_()
    (again,) = sends(do(gate, Export(CUT)))
    assert same_bits(again.state, pinned)


def test_without_stashing_a_cut_is_safe_too():
    gate = gate_alone(nn.Linear(6, 4), staleness=ak.Latest())
    was = bits(gate.module)
    do(gate, Cut(CUT), forward(0, x_of()), backward(0, torch.randn(SIZE, 4)))
    assert not same_bits(gate.module, was)
    assert same_bits(sends(do(gate, Export(CUT)))[0].state, was)


def test_a_released_cut_is_gone_and_what_is_under_way_for_it_is_dropped():
    gate = busy_gate()
    assert do(gate, Release(CUT)) == []
    assert not gate.pins
    assert do(gate, Evaluate(Batch("v", 0), x_of(), CUT), Export(CUT), Release(CUT)) == []


# ── telling ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_watcher_is_told_after_every_so_many_updates_until_it_ends_the_watch():
    gate = gate_alone(nn.Linear(6, 4))

    def due(number):
        effects = do(gate, forward(number, x_of()), backward(number, torch.randn(SIZE, 4)))
        return [e.to for e in effects if isinstance(e.message, Due)]

    do(gate, Watch("v", 2), Watch("w", 3))
    assert [due(n) for n in range(6)] == [[], ["v"], ["w"], ["v"], [], ["v", "w"]]
    do(gate, Watch("v", 0))
    assert [due(n) for n in range(6, 9)] == [[], [], ["w"]]


def test_a_probe_is_answered_with_what_there_is_to_tell():
    gate = busy_gate()
    do(gate, forward(2, x_of()))
    (status,) = reports(do(gate, Probe(7)), GateStatus)
    assert status == GateStatus(7, "gate/1", "gate/1", 1, 2, 1, 1, {0: 2}, {"unknown": 1})


def test_closing_leaves_status_weights_and_buffers_and_stops():
    gate = busy_gate()
    was = bits(gate.module)
    effects = do(gate, Close())
    (left,) = reports(effects, GateLeft)
    assert len(reports(effects, GateStatus)) == 1
    assert stops(effects)
    assert same_bits(left.state, was)
    assert (left.address, left.index, left.version) == ("gate/1", 1, 2)


def test_a_name_is_what_reports_call_it():
    gate = gate_alone(nn.Linear(6, 4), name="encoder")
    (status,) = reports(do(gate, Probe(1)))
    assert (status.name, status.address) == ("encoder", "gate/1")


def test_clipping_is_of_this_gates_gradient_alone():
    def moved(clip_norm):
        torch.manual_seed(2)
        gate = gate_alone(nn.Linear(6, 4), lambda p: torch.optim.SGD(p, lr=1.0), clip_norm=clip_norm)
        before = [w.detach().clone() for w in gate.weights.now]
        do(gate, forward(0, x_of()))
        (back,) = sends(do(gate, backward(0, torch.full((SIZE, 4), 100.0))))
        steps = [b - w.detach() for b, w in zip(before, gate.weights.now, strict=True)]
        return nn.utils.get_total_norm(steps).item(), back.payload

    free, gradient = moved(None)
    clipped, same_gradient = moved(0.5)
    assert free > 100
    assert clipped == pytest.approx(0.5, abs=1e-4)
    assert torch.equal(gradient, same_gradient)


def test_every_forward_is_answered_for_its_own_batch():
    gate = gate_alone(nn.Linear(6, 4))
    for n in range(3):
        (out,) = sends(do(gate, forward(n, x_of(n + 1))), Forward)
        assert out.batch == Batch("s", n)
        assert len(out.payload) == n + 1


@pytest.mark.parametrize("refused_in", ["another gate", "the backward here"])
def test_a_forgotten_batch_leaves_no_statistics_where_nothing_has_come_after_it(refused_in):
    """A batch that a later gate refused stayed in the statistics of the gates before."""
    gate = gate_alone(normed())
    do(gate, forward(0, x_of()), backward(0, torch.randn(SIZE, 4)))
    was = bits(gate.module)
    do(gate, forward(1, 1e3 * x_of()))
    if refused_in == "the backward here":
        refusal(gate, backward(1, torch.full((SIZE, 4), NAN)))
    assert not same_bits(gate.module, was)
    do(gate, Forget("s", 1))
    assert same_bits(gate.module, was)
    do(gate, forward(2, x_of()), forward(3, x_of()))
    was = bits(gate.module)
    do(gate, Forget("s", 2), Forget("s", 2))
    assert same_bits(gate.module, was)


def test_a_last_gate_that_lets_no_gradient_through_is_refused():
    """The loss was differentiated by the output as it came, and no gate ever learned, without a word."""

    class Detaches(nn.Linear):
        def forward(self, x):
            return super().forward(x).detach()

    last = gate_alone(Detaches(6, 4), position={"next": None})
    assert "does it detach its result" in refusal(last, forward(0, x_of())).reason
    between = gate_alone(Detaches(6, 4))
    assert not sends(do(between, forward(0, x_of())), Refused)


def test_a_last_gate_that_is_refused_so_is_as_it_was():
    """Its buffers were, but what the forward had written to its weights stayed."""

    class Writes(nn.BatchNorm1d):
        calls = 0

        def forward(self, x):
            y = super().forward(x)
            self.calls += 1
            self.weight.data.add_(1)
            return y.detach()

        def get_extra_state(self):
            return torch.tensor(self.calls)

        def set_extra_state(self, state):
            self.calls = int(state)

    last = gate_alone(Writes(6), position={"next": None})
    was = bits(last.module)
    assert "does it detach its result" in refusal(last, forward(0, x_of())).reason
    assert same_bits(last.module, was)
    assert last.module.calls == 0


def test_a_module_compiled_in_place_is_told_to_run_uncompiled():
    module = nn.Sequential(nn.Linear(2, 2))
    module[0].compile(backend="eager")
    with pytest.warns(UserWarning, match=r"the part '0' of a gate's module was compiled in place"):
        ak.Gate(module)


# ── what a recipe says of its gate ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"device": "foo"}, "a gate's device is one of PyTorch's, as in 'cuda:0', got 'foo'"),
        ({"device": 1.5}, "a gate's device is one of PyTorch's, as in 'cuda:0', got 1.5"),
        ({"device": "meta"}, "a gate's device cannot be 'meta', where tensors have no values"),
        ({"name": 5}, "a gate's name is a string and not empty, got 5"),
        ({"name": ""}, "a gate's name is a string and not empty, got ''"),
        ({"resources": 5}, "a gate's resources are amounts of at least 0 by name"),
        ({"resources": {"num_cpus": "a"}}, "as in {'num_cpus': 1}, got {'num_cpus': 'a'}"),
        ({"resources": {"num_cpus": -1}}, "as in {'num_cpus': 1}, got {'num_cpus': -1}"),
        ({"resources": {"num_cpus": NAN}}, "as in {'num_cpus': 1}, got {'num_cpus': nan}"),
        ({"resources": {1: 1}}, "as in {'num_cpus': 1}, got {1: 1}"),
        ({"clip_norm": "a"}, "clip_norm is above 0, got 'a'"),
        ({"clip_norm": NAN}, "clip_norm is above 0, got nan"),
    ],
)
def test_arguments_of_another_kind_are_refused_where_the_gate_is_written_down(wrong, sentence):
    with pytest.raises(RecipeError) as info:
        ak.Gate(nn.Linear(6, 2), sgd, **wrong)
    assert sentence in str(info.value)


def test_devices_and_resources_of_every_kind_are_taken():
    for device in (None, "cpu", torch.device("cpu"), "cuda:99"):  # there may be one where the gate is made
        ak.Gate(nn.Linear(6, 2), sgd, device=device, resources={"num_cpus": 0.5, "fast": 0})


def test_a_device_that_is_not_there_is_told_with_the_name_of_the_gate(monkeypatch):
    """PyTorch says so with an AssertionError or a RuntimeError, and names nobody."""

    def to(self, device):
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(nn.Module, "to", to)
    network = ak.Network([ak.Gate(nn.Linear(6, 2), sgd, name="head", device="cuda")])
    for recipe in (network, ak.Downpour(network, replicas=2)):
        with pytest.raises(RecipeError, match="head cannot be moved to its device 'cuda': AssertionError"):
            ak.run(recipe)


def test_a_second_gradient_after_one_that_was_not_finite_is_refused_and_does_not_end_the_gate():
    """The first had gone through the graph, which PyTorch frees: the second made the gate raise."""
    gate = gate_alone(nn.Linear(6, 4))
    do(gate, forward(0, x_of()))
    bad, good = torch.full((SIZE, 4), NAN), torch.ones(SIZE, 4)
    faults = [why.fault for why in sends(do(gate, backward(0, bad), backward(0, good)), Refused)]
    assert faults == [Fault.NOT_FINITE, Fault.UNKNOWN]


def test_the_last_gate_takes_no_number_that_it_has_learned_from():
    gate = gate_alone(nn.Linear(6, 4), position={"next": None})
    once = forward(0, x_of()), backward(0, torch.ones(SIZE, 4))
    assert not sends(do(gate, *once), Refused)
    assert [why.fault for why in sends(do(gate, *once), Refused)] == [Fault.UNKNOWN] * 2
    assert gate.version == 1
