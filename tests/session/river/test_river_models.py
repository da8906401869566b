"""Networks as models of river's: in its evaluation, its pipelines, and by its own checks."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from tests.support.harness import same_bits
from torch import nn
from torch.nn import functional as F

import akkordeon as ak
from akkordeon.core.errors import DataError, RecipeError
from akkordeon.session.streams.live_row import LiveRow

pytest.importorskip("river.base", reason="river is not installed: pip install '.[river]'")

from river import checks, compose, datasets, evaluate, metrics, preprocessing

adam = partial(torch.optim.Adam, lr=0.01)
ROWS = [{"a": 1.0, "b": 2.0}, {"a": -1.0, "b": 0.5}, {"b": 3.0}]


def network(inputs: int, outputs: int, *before: nn.Module) -> ak.Network:
    torch.manual_seed(0)
    first = nn.Sequential(*before, nn.Linear(inputs, 8), nn.ReLU())
    return ak.Network([ak.Gate(first, adam), ak.Gate(nn.Linear(8, outputs), adam)])


class Classifier(ak.river.Classifier):
    """Ours, with what river's checks make one of."""

    @classmethod
    def _unit_test_params(cls):
        yield {"network": network(20, 8, ak.nn.Standardize(20))}


class Regressor(ak.river.Regressor):
    """Likewise."""

    @classmethod
    def _unit_test_params(cls):
        yield {"network": network(20, 1, ak.nn.Standardize(20))}


BY_BYTES = {"check_no_state_aliasing_with_input", "check_clone_is_independent"}
"""They compare two pickles of equal models, in which PyTorch writes where in memory a tensor was."""


def own_checks(model):
    found = [check for check in checks.yield_checks(model) if check.__name__ not in BY_BYTES]
    seen = {"check_bounded_memory_growth"}  # with other data the same check is slow, and this one is with any
    params = []
    for i, check in enumerate(found):
        marks = [pytest.mark.slow] if check.__name__ in seen else []
        seen.add(check.__name__)
        params.append(pytest.param(check, id=f"{check.__name__} {i}", marks=marks))
    return params


@pytest.mark.parametrize("check", own_checks(Classifier(**next(Classifier._unit_test_params()))))
def test_the_classifier_passes_the_checks_of_river(check):
    check(Classifier(**next(Classifier._unit_test_params())))


@pytest.mark.parametrize("check", own_checks(Regressor(**next(Regressor._unit_test_params()))))
def test_the_regressor_passes_the_checks_of_river(check):
    check(Regressor(**next(Regressor._unit_test_params())))


def test_it_learns_to_the_bit_as_a_plain_loop_does():
    model = ak.river.Classifier(network(9, 2))
    plain = network(9, 2).module()
    optimizer = adam(plain.parameters())
    classes: dict[bool, int] = {}
    for x, y in datasets.Phishing().take(50):
        number = classes.setdefault(y, len(classes))
        model.learn_one(x, y)
        optimizer.zero_grad()
        row = torch.tensor([[float(x[name]) for name in sorted(x)]])
        F.cross_entropy(plain(row), torch.tensor([number])).backward()
        optimizer.step()
    assert same_bits(model.module(), plain)


def test_its_evaluation_works_with_labels_at_once_and_late():
    for delay in (None, 3):
        model = ak.river.Classifier(network(9, 2, ak.nn.Standardize(9)))
        score = evaluate.progressive_val_score(
            datasets.Phishing().take(300), model, metrics.Accuracy(), delay=delay
        )
        assert score.get() > 0.8


def test_a_stream_of_ours_and_its_evaluation_give_the_same_score():
    examples = list(datasets.Phishing().take(200))
    model = ak.river.Classifier(network(9, 2))
    score = evaluate.progressive_val_score(examples, model, metrics.Accuracy(), delay=2)
    names = list(dict.fromkeys(y for _, y in examples))
    x = torch.tensor([[float(x[name]) for name in sorted(x)] for x, _ in examples])
    y = torch.tensor([names.index(y) for _, y in examples])
    with ak.run(network(9, 2), ak.Threads(2)) as session:
        sentinel = ak.Sentinel.stream((x, y), F.cross_entropy, scores={"accuracy": ak.accuracy}, delay=2)
        stream = session.attach(sentinel).wait(60).stream[-1]
        assert same_bits(session.module(), model.module())
    unanswered = 2  # before the first label river asks for no prediction's score, and we score those too
    assert stream.overall["accuracy"] * 200 == pytest.approx(score.get() * 200, abs=unanswered)


def test_in_a_pipeline_it_is_what_comes_last():
    pipeline = compose.Pipeline(preprocessing.StandardScaler(), ak.river.Regressor(network(6, 1)))
    score = evaluate.progressive_val_score(datasets.TrumpApproval().take(300), pipeline, metrics.MAE())
    assert score.get() < 40
    assert isinstance(pipeline.predict_one(next(iter(datasets.TrumpApproval()))[0]), float)


def test_mini_batches_are_lists_of_dicts():
    model = ak.river.Classifier(network(2, 3))
    assert model.predict_many(ROWS) == [None, None, None]
    model.learn_many(ROWS, ["x", "y", "x"])
    shares = model.predict_proba_many(ROWS)
    assert [set(row) for row in shares] == [{"x", "y"}] * 3
    assert model.predict_many(ROWS) == [max(row, key=row.get) for row in shares]
    assert shares[0] == pytest.approx(model.predict_proba_one(ROWS[0]))
    regressor = ak.river.Regressor(network(2, 1))
    assert regressor.predict_many(ROWS) == [0.0, 0.0, 0.0]
    regressor.learn_many(ROWS, [1.0, 2.0, 3.0])
    assert regressor.predict_many(ROWS) == pytest.approx([regressor.predict_one(row) for row in ROWS])


def test_mini_batches_are_data_frames_of_which_the_same_comes_back():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(ROWS[:2], index=[7, 9])
    model, of_lists = ak.river.Classifier(network(2, 3)), ak.river.Classifier(network(2, 3))
    model.learn_many(frame, pandas.Series(["x", "y"], index=[7, 9]))
    of_lists.learn_many(ROWS[:2], ["x", "y"])
    assert list(model.predict_proba_many(frame).index) == [7, 9]
    assert list(model.predict_many(frame)) == of_lists.predict_many(ROWS[:2])


# The loss took them as they were, and a gate's refusal, or a shape of PyTorch's, was all that was said.
@pytest.mark.parametrize("kind", [ak.river.Classifier, ak.river.Regressor])
def test_a_mini_batch_has_a_label_for_each_row_and_may_be_empty(kind):
    model = kind(network(2, 1))
    with pytest.raises(DataError, match="has a label for each row, got 2 for 1 rows"):
        model.learn_many(ROWS[:1], [1, 1])
    assert same_bits(model.module(), network(2, 1).module())
    model.learn_many(ROWS, [1, 1, 1])
    learned = model.module()
    model.learn_many([], [])
    assert same_bits(model.module(), learned)
    assert model.predict_many([]) == []


def test_a_label_that_is_no_number_is_told_to_a_regressor_in_a_sentence():
    model = ak.river.Regressor(network(2, 1))
    for label in (None, "high"):
        with pytest.raises(DataError, match=f"the label {label!r} is no number"):
            model.learn_one(ROWS[0], label)


def test_more_classes_or_features_than_there_is_room_for_are_refused_in_a_sentence_and_it_goes_on():
    model = ak.river.Classifier(network(2, 2))
    model.learn_many(ROWS, ["x", "y", "x"])
    with pytest.raises(DataError, match="the class 'z' is one too many for the 2 outputs of the network"):
        model.learn_one(ROWS[0], "z")
    with pytest.raises(DataError, match="the feature 'c' is one too many for the 2 inputs of the network"):
        model.learn_one({"c": 1}, "x")
    with pytest.raises(DataError, match="the feature 'b' is 'red', and no number; encode it first"):
        model.learn_one({"b": "red"}, "x")
    model.learn_one(ROWS[0], "x")
    assert set(model.predict_proba_one({"c": 1, **ROWS[0]})) == {"x", "y"}


def test_copies_and_pickles_go_on_as_it_would_have_and_touch_it_not():
    examples = list(datasets.Phishing().take(60))
    model = ak.river.Classifier(network(9, 2, ak.nn.Standardize(9)))
    for x, y in examples[:30]:
        model.learn_one(x, y)
    others = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for x, y in examples[30:]:
        model.learn_one(x, y)
    for other in others:
        assert not same_bits(other.module(), model.module())
        for x, y in examples[30:]:
            other.learn_one(x, y)
        assert same_bits(other.module(), model.module())
        assert other.predict_proba_one(examples[0][0]) == model.predict_proba_one(examples[0][0])


def test_a_clone_has_learned_nothing_and_learns_for_itself():
    model = ak.river.Classifier(network(2, 2))
    model.learn_one(ROWS[0], "x")
    clone = model.clone()
    assert clone.predict_proba_one(ROWS[0]) == {}
    assert same_bits(clone.module(), network(2, 2).module())
    before = copy.deepcopy(model.module().state_dict())
    clone.learn_one(ROWS[0], "y")
    assert same_bits(model.module(), before)


def test_what_a_gate_refuses_is_told_and_leaves_the_gates_as_they_were():
    def loss(outputs, y):
        raise ValueError("not today")

    model = ak.river.Regressor(network(2, 1), loss=loss)
    with pytest.raises(ValueError, match="not today"):
        model.learn_one(ROWS[0], 1.0)
    assert same_bits(model.module(), network(2, 1).module())
    with pytest.raises(DataError, match="gate/0 refused it: its input is not finite"):
        model.learn_one({"a": float("nan")}, 1.0)


def test_a_model_is_made_of_a_network():
    with pytest.raises(RecipeError, match="is made of a Network, got Linear"):
        ak.river.Classifier(nn.Linear(2, 2))


# A prediction had the number of the batch that was to be learned next. Gates were told to forget what they
# had refused, so they kept silent on that batch, too.
def test_after_a_prediction_that_gates_refuse_it_learns_as_if_nothing_had_been_asked():
    rows = [LiveRow(network(3, 1), seed=0) for _ in range(2)]
    for i, row in enumerate(rows):
        if i:
            with pytest.raises(DataError, match="its module cannot evaluate"):
                row.predict(torch.ones(1, 4))
        row.learn(torch.ones(1, 3), torch.ones(1, 1), F.mse_loss)
    assert same_bits(*(row.module() for row in rows))
