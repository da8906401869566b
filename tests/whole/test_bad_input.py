"""Bad input of every kind: one clear sentence, the last good weights, no hanging, and the others go on.

``python tests/whole/test_bad_input.py`` prints the sentences.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.harness import SIZE, WAIT_S, batches_of, breaking, same_bits, sgd, small_network

import akkordeon as ak
from akkordeon.core.errors import (
    AkkordeonError,
    ClusterError,
    DataError,
    ForeignParameterError,
    GateFailedError,
    NameTakenError,
    RecipeError,
    SentinelFailedError,
)

SGD = partial(torch.optim.SGD, lr=0.1)
TARGETS = torch.randint(4, (SIZE,))
CASES: dict[str, tuple[Callable[[ak.Session], str], list[str]]] = {}
"""What is wrong: what brings it about and gives the sentence, and what must stand in that sentence."""


def case(*must_say: str):
    def add(scenario):
        CASES[scenario.__name__.replace("_", " ")] = (scenario, list(must_say))
        return scenario

    return add


def error_of(kind: type[AkkordeonError], function, *args, **kwargs) -> str:
    with pytest.raises(kind) as info:
        function(*args, **kwargs)
    return str(info.value)


def failure(session, batches, loss=F.cross_entropy, kind=SentinelFailedError) -> str:
    """The sentence with which a training sentinel on these batches fails."""
    return error_of(kind, lambda: session.attach(ak.Sentinel.train(batches, loss, name="bad")).wait(WAIT_S))


def refusal(session, batches, loss=F.cross_entropy) -> str:
    """The sentence about the one bad batch among good ones, which are all trained."""
    bad = session.attach(ak.Sentinel.train(batches, loss, name="bad")).wait(WAIT_S)
    assert bad.batches.as_tuple() == (len(batches), len(batches) - 1, 1, 0)
    assert bad.epochs[0].refused == 1
    (refused,) = bad.refusals
    return str(refused)


def among_good(x, y=TARGETS) -> list:
    return [*batches_of(3), (x, y), *batches_of(3)]


# ── wrong shapes and dtypes ──────────────────────────────────────────────────────────────────────────


@case("gate/0 refused batch 3 of bad", "float32 (8, 7)", "it has worked on float32 (*, 6)")
def a_batch_of_a_wrong_shape(session):
    return refusal(session, among_good(torch.randn(SIZE, 7)))


@case("gate/0 refused batch 3 of bad", "int64 (8, 6)", "it has worked on float32 (*, 6)")
def a_batch_of_a_wrong_dtype(session):
    return refusal(session, among_good(torch.ones(SIZE, 6, dtype=torch.int64)))


@case("gate/0 refused batch 3 of bad", "(float32 (8, 6), float32 (8, 6))")
def a_batch_of_a_wrong_form(session):
    x = torch.randn(SIZE, 6)
    return refusal(session, among_good((x, x)))


@case("sentinel 'bad' failed on ", "all 3 of its batches were refused", "(8, 7)")  # likewise
def nothing_but_batches_of_a_wrong_shape(session):
    return failure(session, batches_of(3, features=7))


@case(
    "sentinel 'predict' failed on batch 0", "gate/0 refused it", "float32 (8, 7)"
)  # nothing may have worked yet
def a_prediction_of_a_wrong_shape(session):
    return error_of(SentinelFailedError, session.predict, torch.randn(SIZE, 7), WAIT_S)


# ── NaN ──────────────────────────────────────────────────────────────────────────────────────────────


@case("gate/0 refused batch 3 of bad", "its input is not finite")
def a_batch_with_nan(session):
    return refusal(session, among_good(torch.full((SIZE, 6), float("nan"))))


def nan_at_zeros(outputs, targets):
    loss = F.cross_entropy(outputs, targets)
    return loss * float("nan") if not targets.any() else loss


ZEROS = torch.zeros(SIZE, dtype=torch.int64)


@case("bad refused its own batch 3", "its loss is nan, expected a finite number")
def a_loss_that_is_nan(session):
    return refusal(session, among_good(torch.randn(SIZE, 6), ZEROS), nan_at_zeros)


@case("sentinel 'bad' failed", "all 7 of its batches were refused", "its loss is nan")
def a_loss_that_is_always_nan(session):
    return failure(session, batches_of(7), lambda outputs, targets: outputs.sum() * float("nan"))


def nan_gradient_at_zeros(outputs, targets):
    loss = F.cross_entropy(outputs, targets)
    return loss + (outputs * 0).sqrt().sum() if not targets.any() else loss


@case("gate/2 refused batch 3 of bad", "the gradient of its output is not finite")
def a_gradient_that_is_nan(session):
    return refusal(session, among_good(torch.randn(SIZE, 6), ZEROS), nan_gradient_at_zeros)


# ── sources ──────────────────────────────────────────────────────────────────────────────────────────


@case("sentinel 'bad' has nothing to read", "a list of 0 batches is no source; give at least one batch")
def an_empty_list_for_a_source(session):
    return failure(session, [], kind=DataError)


@case("sentinel 'bad' has nothing to read", "TensorDataset is a data set", "DataLoader(…, batch_size=128")
def a_data_set_without_a_loader(session):
    return failure(session, TensorDataset(torch.randn(SIZE, 6), TARGETS), kind=DataError)


@case("sentinel 'bad' has nothing to read", "item 0 of the tuple is a NumPy ndarray", "torch.from_numpy(…)")
def arrays_for_tensors(session):
    return failure(session, (torch.randn(SIZE, 6).numpy(), TARGETS.numpy()), kind=DataError)


@case("sentinel 'bad' failed on reading", "its source gave no batches (epoch 1)")
def a_generator_that_gives_nothing(session):
    return failure(session, iter(()))


@case("sentinel 'bad' failed on reading", "gave no batches again", "can be read more than once (epoch 2)")
def a_generator_for_two_epochs(session):
    source = iter(batches_of(3))
    bad = session.attach(ak.Sentinel.train(source, F.cross_entropy, epochs=2, name="bad"))
    sentence = error_of(SentinelFailedError, bad.wait, WAIT_S)
    assert bad.batches.sent == 3
    return sentence


@case("sentinel 'bad' failed on reading", "OSError: the disk is gone")
def a_source_that_raises(session):
    def source():
        yield from batches_of(2)
        raise OSError("the disk is gone")

    return failure(session, source())


@case("sentinel 'bad' failed on reading", "must give (x, y) pairs, got a Tensor as batch 2")
def a_source_that_gives_no_pairs(session):
    return failure(session, iter([*batches_of(2), torch.ones(3)]))


# ── losses ───────────────────────────────────────────────────────────────────────────────────────────


@case("sentinel 'bad' failed on batch 0", "its loss must be one number, got shape (8,); take the mean")
def a_loss_that_is_no_scalar(session):
    return failure(session, batches_of(3), lambda out, y: F.cross_entropy(out, y, reduction="none"))


@case("sentinel 'bad' failed on batch 0", "must be a tensor with one number, got a float")
def a_loss_that_is_no_tensor(session):
    return failure(session, batches_of(3), lambda out, y: F.cross_entropy(out, y).item())


@case("sentinel 'bad' failed on batch 0", "IndexError: Target 9 is out of bounds.")
def a_target_that_is_no_class(session):
    return failure(session, [(torch.randn(SIZE, 6), torch.full((SIZE,), 9))])


@case("sentinel 'bad' failed on batch 0", "the score 'each' must be one number, got a Tensor of shape (8,)")
def a_score_that_is_no_number(session):
    scores = {"each": lambda out, y: out.argmax(1) == y}
    bad = session.attach(ak.Sentinel.train(batches_of(3), F.cross_entropy, scores=scores, name="bad"))
    return error_of(SentinelFailedError, bad.wait, WAIT_S)


# ── recipes ──────────────────────────────────────────────────────────────────────────────────────────


@case("the optimizer of gate/1 holds a parameter of shape (4, 7) that is not the gate's", "lambda params:")
def an_optimizer_over_foreign_parameters(session):
    model = nn.Sequential(nn.Linear(6, 7), nn.Linear(7, 4))
    gates = [ak.Gate(model[0], sgd), ak.Gate(model[1], lambda params: sgd(model[1].parameters()))]
    return error_of(ForeignParameterError, ak.run, ak.Network(gates))


@case("a sentinel 'good' is at work already; give this one another name")
def two_sentinels_with_one_name(session):
    return error_of(
        NameTakenError, session.attach, ak.Sentinel.train(batches_of(1), F.cross_entropy, name="good")
    )


# ── what must be true of each ────────────────────────────────────────────────────────────────────────


def endless():
    while True:
        yield from batches_of(1)


def with_company(scenario) -> str:
    """Run a scenario beside a training and a validation sentinel, which must not be disturbed."""
    with ak.run(small_network()) as session:
        good = session.attach(ak.Sentinel.train(endless(), F.cross_entropy, samples=10**9, name="good"))
        vdp = session.attach(
            ak.Sentinel.validate(batches_of(2), F.cross_entropy, every_updates=5, name="vdp")
        )
        sentence = scenario(session)
        seen = session.status(WAIT_S).gates[0].version
        while session.status(WAIT_S).gates[0].version < seen + 20:  # the other goes on
            assert not good.ended
        good.detach()
        good.wait(WAIT_S)
        session.detach("vdp")
        vdp.wait(WAIT_S)
        assert good.batches.sent == good.batches.trained
        assert vdp.rounds
        assert all(gate.stashed == gate.pinned == 0 for gate in session.status(WAIT_S).gates)
        states = session.states(WAIT_S)
    assert all(tensor.isfinite().all() for state in states.values() for tensor in state.values())
    return sentence


class Broken(nn.Module):
    """Raises in the backward of its 50th training batch."""

    def __init__(self):
        super().__init__()
        self.linear, self.batch = nn.Linear(9, 9), 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.batch += self.training
        self.seen += 1
        y = self.linear(x)
        return breaking(y, ValueError("cannot take\nany more")) if self.batch == 50 and self.training else y


def module_that_raises_on_the_50th_batch() -> str:
    parts = [nn.Linear(6, 9), Broken(), nn.Linear(9, 4)]
    with ak.run(ak.Network([ak.Gate(part, sgd) for part in parts])) as session:
        tdp = session.attach(ak.Sentinel.train(batches_of(100), F.cross_entropy, in_flight=3, name="tdp"))
        vdp = session.attach(
            ak.Sentinel.validate(batches_of(2), F.cross_entropy, every_updates=5, name="vdp")
        )
        sentence = error_of(GateFailedError, tdp.wait, WAIT_S)
        for asked in (session.wait, vdp.wait, session.predict):
            args = (torch.randn(2, 6), WAIT_S) if asked == session.predict else (WAIT_S,)
            assert error_of(GateFailedError, asked, *args) == sentence
        states = session.states(WAIT_S)
    versions = {gate.version for gate in session.status(0.0).gates}
    assert versions <= set(range(47, 53))
    assert states["gate/1"]["seen"] in (50, 51, 52)
    assert all(tensor.isfinite().all() for state in states.values() for tensor in state.values())
    assert not same_bits(session.module(), session.network.module())
    assert session.states() == states
    sent, trained, refused, lost = tdp.batches.as_tuple()
    assert (sent, refused) == (trained + lost, 0)
    assert vdp.ended
    return sentence


def sentences() -> list[tuple[str, str]]:
    """What is wrong, and the sentence that says so."""
    told = [(what, with_company(scenario)) for what, (scenario, _) in CASES.items()]
    return [*told, ("a module that raises on the 50th batch", module_that_raises_on_the_50th_batch())]


@pytest.mark.parametrize("what", CASES)
def test_bad_input_is_told_in_one_sentence_and_the_others_go_on(what):
    scenario, must_say = CASES[what]
    sentence = with_company(scenario)
    assert "\n" not in sentence
    for words in must_say:
        assert words in sentence


@pytest.mark.parametrize(
    ("mistaken", "sentence"),
    [
        ({"loss": nn.CrossEntropyLoss}, "got the class CrossEntropyLoss; make one of it: CrossEntropyLoss()"),
        ({"scores": ak.accuracy}, 'as in {"accuracy": akkordeon.accuracy}; got accuracy'),
        ({"scores": [ak.accuracy]}, 'as in {"accuracy": akkordeon.accuracy}; got list'),
        ({"scores": {"f1": "f1"}}, "the score 'f1' is a function of (outputs, y) or a metric, got 'f1'"),
        ({"in_flight": 2.5}, "in_flight is a whole number, got 2.5"),
        ({"batch_size": "32"}, "batch_size is at least 1, got '32'"),
        ({"name": 5}, "a sentinel's name has no '/' and no '#' and is not empty, got 5"),
        ({"scores": {1: ak.accuracy}}, "the name of a score is a string, got 1"),
        ({"loss": None}, "loss is a function of (outputs, targets), got NoneType"),
        ({"schedule_by": 3}, "schedule_by is by 3, but the scores are loss"),
        ({"best": ak.Best(score=None)}, "best is by None, but the scores are loss"),
        ({"best": "loss"}, "best is a Best, as in Best('loss', patience=5), got 'loss'"),
    ],
)
def test_arguments_of_another_kind_are_refused_where_the_sentinel_is_made(mistaken, sentence):
    given = {"batches": batches_of(1), "loss": F.cross_entropy} | mistaken
    for make in [ak.Sentinel.validate] + [ak.Sentinel.train] * (
        not mistaken.keys() & {"best", "schedule_by"}
    ):
        assert sentence in error_of(RecipeError, make, **given)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: ak.Network.from_module(nn.Sequential(nn.ReLU()), "2", SGD),
            "gates is a number, or a function that names where to cut, as ak.auto; got '2'",
        ),
        (lambda: replace(small_network(), max_staleness="3"), "max_staleness is at least 0, got '3'"),
        (lambda: replace(small_network(), max_in_flight=1.5), "max_in_flight is a whole number, got 1.5"),
        (lambda: ak.Threads(workers="2"), "workers is at least 1, got '2'"),
        (lambda: ak.Ray(workers=0), "workers is at least 1, got 0"),
        (lambda: ak.Ray(workers="a"), "workers is at least 1, got 'a'"),
        (lambda: ak.Downpour(small_network(), replicas="2"), "replicas is at least 1, got '2'"),
        (lambda: ak.Downpour(small_network(), replicas=None), "replicas is at least 1, got None"),
        (lambda: ak.Downpour(small_network(), push_every="4"), "push_every is at least 1, got '4'"),
        (lambda: ak.run(small_network(), seed="3"), "a seed is a whole number of 64 bits, got '3'"),
        (
            lambda: ak.run(small_network(), engine=3),
            "an engine is a name or one such as Threads(), got 3",
        ),
        (lambda: ak.DelayCompensation(decay="1"), "the decay of delay compensation is in [0, 1), got '1'"),
        (lambda: ak.Best(patience="5"), "patience is at least 1, got '5'"),
        (lambda: ak.Sentinel.train([], F.cross_entropy, in_flight="2"), "in_flight is at least 1, got '2'"),
        (lambda: ak.Sentinel.train([], F.cross_entropy, epochs="3"), "epochs is above 0, got '3'"),
        (lambda: ak.Sentinel.train([], F.cross_entropy, replica="0"), "replica is at least 0, got '0'"),
    ],
)
def test_a_number_that_is_none_is_refused_by_the_name_of_its_argument(make, sentence):
    assert error_of(RecipeError, make) == sentence


@pytest.mark.parametrize("placement", [5, None, "x", [0, 1], [["0"]], ["01"], {0: 1}, [[0.5]]])
def test_what_is_no_placement_is_refused_where_the_engine_is_made(placement):
    assert error_of(RecipeError, ak.Ray, placement=placement) == (
        f"a placement is 'spread', 'pack' or lists of gates, got {placement!r}"
    )


def test_a_placement_of_another_network_is_refused_before_ray_starts(monkeypatch):
    monkeypatch.setattr("akkordeon.engines.ray.engine.join", lambda address: pytest.fail("it started"))
    gates = len(small_network().gates)
    engine = ak.Ray(placement=[[*range(gates), gates]])
    assert f"the network has no gate/{gates}" in error_of(RecipeError, ak.run, small_network(), engine=engine)


def test_an_address_of_another_form_is_refused_where_it_is_given():
    for wrong in (5, "abc", "127.0.0.1:0"):
        assert f"an address is HOST:PORT, as in 192.168.1.23:25520; got {wrong!r}" in error_of(
            ClusterError, ak.Ray, wrong
        )
    assert "a network is HOST:PORT/NAME, as in" in error_of(ClusterError, ak.connect, 5)


def test_training_where_no_gate_has_an_optimizer_is_warned_about(caplog):
    with ak.run(ak.Network([ak.Gate(nn.Linear(6, 4))])) as session:
        session.attach(ak.Sentinel.train(batches_of(1), F.cross_entropy)).wait(WAIT_S)
    assert "no gate has an optimizer, so training changes no weights" in caplog.text


def test_training_where_some_gates_have_no_optimizer_is_not(caplog):
    with ak.run(ak.Network([ak.Gate(nn.Linear(6, 6)), ak.Gate(nn.Linear(6, 4), sgd)])) as session:
        session.attach(ak.Sentinel.train(batches_of(1), F.cross_entropy)).wait(WAIT_S)
    assert not caplog.records


def test_a_module_that_raises_on_the_50th_batch_ends_the_session_with_its_last_good_weights():
    sentence = module_that_raises_on_the_50th_batch()
    assert sentence == (
        "gate/1 failed on Backward of batch 49 of sentinel/tdp#1: ValueError: cannot take any more"
    )


if __name__ == "__main__":
    for what, sentence in sentences():
        print(f"| {what} | {sentence} |")
