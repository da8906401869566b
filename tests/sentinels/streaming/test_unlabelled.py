"""Examples that wait for their labels."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from akkordeon.sentinels.streaming.unlabelled import Example, Unlabelled


def numbers(examples) -> list[int]:
    return [example.number for example in examples]


def keyed(number: int, key="k") -> Example:
    return Example(number, None, key=key)


def test_a_label_finds_its_example_by_key_once():
    waiting = Unlabelled(10)
    waiting.add(keyed(0, "a"))
    waiting.add(keyed(1, "b"))
    found = waiting.answer("b", 7)
    assert (found.number, found.y, found.is_labelled) == (1, 7, True)
    assert waiting.answer("b", 7) is None
    assert waiting.answer("c", 7) is None
    assert (waiting.counted().unmatched, waiting.counted().waiting) == (2, 1)


def test_labels_come_when_they_are_due_by_time_and_then_by_number():
    waiting = Unlabelled(10)
    for number, due in enumerate([5, 2, None, 2]):
        waiting.add(Example(number, None, due=due))
    assert numbers(waiting.due(1)) == []
    assert numbers(waiting.due(2)) == [1, 3]
    assert numbers(waiting.due(None)) == [0]
    assert numbers(waiting.drop_all()) == [2]
    assert (waiting.counted().waiting, waiting.counted().dropped) == (0, 1)


@given(st.lists(st.sampled_from([None, 0, 3, 1000]), max_size=60))
def test_of_too_many_the_oldest_is_dropped_whatever_it_waits_for(dues):
    waiting, dropped, given = Unlabelled(5), [], []
    for number, due in enumerate(dues):
        given += numbers(waiting.due(number))
        out = waiting.add(Example(number, None, due=None if due is None else number + due))
        if out is not None:
            dropped.append(out.number)
        assert len(waiting) <= 5
    assert waiting.counted().dropped == len(dropped)
    rest = numbers(waiting.due(None)) + numbers(waiting.drop_all())
    assert sorted(dropped + given + rest) == list(range(len(dues)))


def test_a_key_that_comes_again_is_a_duplicate_whatever_became_of_it():
    waiting = Unlabelled(2)
    assert waiting.is_new("a")
    waiting.add(keyed(0, "a"))
    assert not waiting.is_new("a")
    assert not waiting.is_done("a")
    waiting.answer("a", 1)
    waiting.done("a")
    assert not waiting.is_new("a")
    assert waiting.is_done("a")
    assert waiting.counted().duplicates == 2


def test_of_keys_that_came_a_bounded_number_is_known():
    waiting = Unlabelled(2)
    for number in range(100):
        waiting.add(keyed(number, f"key {number}"))
        waiting.answer(f"key {number}", 0)
        waiting.done(f"key {number}")
    assert len(waiting.state()["keys"]) == 4
    assert not waiting.is_new("key 99")
    assert waiting.is_new("key 3")


# With more examples in flight than keys that are known each key came back with its end, for ever.
def test_of_keys_that_are_done_late_no_more_are_known():
    waiting = Unlabelled(1)
    for number in range(100):
        waiting.came(number)
        waiting.done(max(0, number - 8))
    assert len(waiting.state()["keys"]) == 2


def test_another_goes_on_from_its_state_and_knows_what_is_not_predicted():
    one, other = Unlabelled(10), Unlabelled(10)
    one.add(Example(0, "x", key="a", is_predicted=True, outputs="y"))
    one.add(Example(1, "x", due=4))
    one.is_new("a")
    not_predicted = other.go_on_from(one.state())
    assert numbers(not_predicted) == [1]
    assert other.state() == one.state()
    assert other.answer("a", 3).outputs == "y"
    assert numbers(other.due(4)) == [1]
