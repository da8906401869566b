"""A file that somebody else writes on."""

from __future__ import annotations

import threading
from itertools import islice

import pytest

from akkordeon.core.errors import DataError
from akkordeon.data.streams.growing import GrowingFile


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("a,b\n1,2\n")
    return path


def append(path, text):
    with path.open("a") as file:
        file.write(text)


def test_lines_come_as_they_are_written_and_only_whole_ones(path):
    source = GrowingFile(path, poll_s=0.001)
    records = iter(source)
    assert next(records) == {"a": 1.0, "b": 2.0}
    append(path, "3,4\n5,")
    assert next(records) == {"a": 3.0, "b": 4.0}
    writer = threading.Thread(target=append, args=(path, "6\n"))
    writer.start()
    assert next(records) == {"a": 5.0, "b": 6.0}
    writer.join()


def test_closed_it_ends_after_the_lines_that_are_there(path):
    source = GrowingFile(path, poll_s=60)
    records = iter(source)
    next(records)
    ended = threading.Event()
    reader = threading.Thread(target=lambda: (list(records), ended.set()))
    reader.start()
    source.close()
    assert ended.wait(10)
    reader.join()


def test_without_following_it_ends_where_the_file_ends_also_without_a_newline(path):
    append(path, "3,4")
    assert len(list(GrowingFile(path, follow=False))) == 2


def test_another_goes_on_at_its_place(path):
    append(path, "3,4\n5,6\n")
    first, second = GrowingFile(path, follow=False), GrowingFile(path, follow=False)
    records = list(islice(first, 2))
    second.load_state_dict(first.state_dict())
    assert [*records, *second] == [{"a": float(n), "b": n + 1.0} for n in (1, 3, 5)]


def test_a_file_that_was_cut_off_is_refused(path):
    records = iter(GrowingFile(path, poll_s=0.001))
    next(records)
    path.write_text("a\n")
    with pytest.raises(DataError, match="was cut off before byte 8"):
        next(records)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"none\.csv cannot be read: No such file"):
        next(iter(GrowingFile(tmp_path / "none.csv")))


# The mark that spreadsheets put first was part of the first name, and no feature was found under that.
def test_a_byte_order_mark_is_no_part_of_the_first_name(path):
    path.write_bytes(b"\xef\xbb\xbfa,b\n1,2\n")
    assert list(GrowingFile(path, follow=False)) == [{"a": 1.0, "b": 2.0}]


def test_a_line_that_is_no_text_is_refused_with_its_number(path):
    path.write_bytes(b"a,b\n\xff,2\n")
    with pytest.raises(DataError, match=r"line 2 of .* is no text in UTF-8: invalid start byte"):
        list(GrowingFile(path, follow=False))
