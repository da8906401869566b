"""Lines as records, and records as examples."""

from __future__ import annotations

import pytest
import torch

import akkordeon as ak
from akkordeon.core.errors import DataError, RecipeError
from akkordeon.data.streams.columns import Columns
from akkordeon.data.streams.lines import Lines

ROW = Columns(["a", "b"], "y", classes=["UP", "DOWN"], key="id")


def test_csv_has_names_in_its_first_line_and_numbers_where_they_are_numbers():
    lines = ["a,b\n", "1,x\n", "\n", '2.5,"y, z"\n']
    assert list(Lines(lines, "csv")) == [{"a": 1.0, "b": "x"}, {"a": 2.5, "b": "y, z"}]


def test_a_line_of_json_is_an_object():
    assert list(Lines(['{"a": [1, 2]}\n', "\n", '{"b": null}'])) == [{"a": [1, 2]}, {"b": None}]


@pytest.mark.parametrize(
    ("form", "lines", "why"),
    [
        ("csv", ["a,b", "1,2", "1"], "line 3 has 1 values for 2 names"),
        ("json", ["{}", "{"], "line 2 is no JSON: "),
        ("json", ["[1]"], "line 1 is a JSON list, and no object"),
    ],
)
def test_a_line_that_is_no_record_is_refused_with_its_number(form, lines, why):
    with pytest.raises(DataError, match=why):
        list(Lines(lines, form))


def test_another_format_is_refused():
    with pytest.raises(RecipeError, match="lines are 'json' or 'csv', got 'xml'"):
        Lines([], "xml")


def test_after_a_restart_the_names_are_known_and_may_come_again():
    first, second = Lines(["a,b", "1,2"], "csv"), Lines(["3,4", "a,b", "5,6"], "csv")
    list(first)
    second.load_state_dict(first.state_dict())
    assert list(second) == [{"a": 3.0, "b": 4.0}, {"a": 5.0, "b": 6.0}]


def test_columns_make_an_example_of_a_record():
    x, y = ROW({"a": 1.0, "b": 2, "y": "DOWN", "more": "z"})
    assert torch.equal(x, torch.tensor([[1.0, 2.0]]))
    assert torch.equal(y, torch.tensor([1]))
    x, y = Columns(["a"], "y")({"a": 1.0, "y": 0.5})
    assert torch.equal(y, torch.tensor([[0.5]]))


def test_with_a_key_features_and_labels_may_come_apart():
    question, answer = ROW({"id": 7.0, "a": 1, "b": 2}), ROW({"id": 7.0, "y": "UP"})
    assert isinstance(question, ak.Question)
    assert isinstance(answer, ak.Answer)
    assert question.key == answer.key == 7
    assert torch.equal(answer.y, torch.tensor([0]))


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"a": 1, "b": 2}, "a record has no id; it has a, b"),
        ({"a": "x", "b": 2, "y": "UP"}, "the a of a record is 'x', and no number"),
        ({"a": 1, "b": 2, "y": "SIDEWAYS"}, "the y of a record is 'SIDEWAYS', and none of 'UP', 'DOWN'"),
    ],
)
def test_a_record_that_is_no_example_is_refused_with_what_is_wrong(record, why):
    with pytest.raises(DataError, match=why):
        ROW(record)
