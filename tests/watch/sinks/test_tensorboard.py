"""Event files, read back with TensorBoard's own reader."""

from __future__ import annotations

import pytest
from tests.support.harness import WAIT_S, batches_of, small_network
from torch.nn.functional import cross_entropy

import akkordeon as ak
from akkordeon.core.errors import RecipeError
from akkordeon.core.reports import GateStatus, RoundDone

pytest.importorskip("tensorboard", reason="TensorBoard is not installed: pip install '.[tensorboard]'")


def read(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
    found.Reload()
    return found


def text_in(found, name):
    (event,) = found.Tensors(f"{name}/text_summary")
    return event.tensor_proto.string_val[0].decode()


def test_scalars_of_a_session_are_there_with_their_steps(tmp_path):
    scores = {"accuracy": ak.accuracy}
    with ak.TensorBoard(tmp_path) as board, ak.run(small_network()) as session:
        session.subscribe(board)
        training = session.attach(
            ak.Sentinel.train(batches_of(5), cross_entropy, epochs=3, scores=scores, name="t")
        )
        session.wait(WAIT_S)
    found = read(tmp_path)
    losses = found.Scalars("t/loss")
    assert [event.step for event in losses] == [5, 10, 15]
    assert [event.value for event in losses] == pytest.approx([e.loss for e in training.epochs])
    assert [event.value for event in found.Scalars("t/accuracy")] == pytest.approx(
        [e.scores["accuracy"] for e in training.epochs]
    )
    assert found.Scalars("gate/1/version")[-1].value == 15


def test_staleness_is_a_histogram_with_a_bucket_for_each(tmp_path):
    with ak.TensorBoard(tmp_path) as board:
        board(GateStatus(0, "gate/0", "g", 0, 9, 0, 0, {1: 5, 3: 4}, {}))
    (event,) = read(tmp_path).Histograms("gate/0/staleness")
    seen = event.histogram_value
    assert (seen.min, seen.max, seen.num, seen.sum, seen.sum_squares) == (1, 3, 9, 17, 41)
    assert list(seen.bucket_limit) == [1.5, 2.5, 3.5]
    assert list(seen.bucket) == [5, 0, 4]


def test_settings_and_network_are_texts_that_no_name_can_break(tmp_path):
    settings = {"lr": 0.1, "task": "a|b <script>\n", "downpour": {"replicas": 2}}
    with ak.TensorBoard(tmp_path, settings=settings, network=small_network()):
        pass
    found = read(tmp_path)
    table = text_in(found, "settings")
    assert "| lr | 0.1 |" in table
    assert "| downpour.replicas | 2 |" in table
    assert "<script>" not in table
    assert all(line.count(" | ") == 1 for line in table.splitlines()[2:])
    text = text_in(found, "network")
    assert "Linear(in_features=6, out_features=9" in text
    assert all(line.startswith("    ") for line in text.splitlines())


def test_a_downpour_is_told_as_text_too(tmp_path):
    with ak.TensorBoard(tmp_path, network=ak.Downpour(small_network(), replicas=2)):
        pass
    assert "gate/2" in text_in(read(tmp_path), "network")


def test_what_is_no_number_is_kept_as_such(tmp_path):
    with ak.TensorBoard(tmp_path) as board:
        board(RoundDone("v", "validate", 1, float("nan"), {"f": float("inf")}, 8, 0.5, 1))
    found = read(tmp_path)
    assert found.Scalars("v/loss")[0].value != found.Scalars("v/loss")[0].value
    assert found.Scalars("v/f")[0].value == float("inf")


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RecipeError, match="the event files cannot be written to"):
        ak.TensorBoard(tmp_path / "file")
