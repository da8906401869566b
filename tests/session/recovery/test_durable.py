"""Files and folders that appear when they are whole: akkordeon.session.recovery.durable."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest

from akkordeon.core.errors import DataError
from akkordeon.session.recovery.durable import whole_file, whole_folder


def test_a_file_appears_when_it_is_whole_and_never_before(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with suppress(RuntimeError), whole_file(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    with whole_file(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    names = []

    def fsync(number):
        names.append((os.readlink(f"/proc/self/fd/{number}"), sorted(p.name for p in tmp_path.iterdir())))

    monkeypatch.setattr(os, "fsync", fsync)
    with whole_file(tmp_path / "file") as part:
        part.write_text("new")
    assert names == [(f"{tmp_path}/file.part", ["file.part"]), (str(tmp_path), ["file"])]


def test_a_folder_appears_when_all_in_it_is_on_the_disk(tmp_path, monkeypatch):
    synced = []

    def fsync(number):
        path = os.readlink(f"/proc/self/fd/{number}").removeprefix(str(tmp_path))
        synced.append((path, sorted(p.name for p in tmp_path.iterdir())))

    monkeypatch.setattr(os, "fsync", fsync)
    with whole_folder(tmp_path / "folder") as part:
        (part / "file").write_text("new")
    assert synced == [
        ("/folder.part/file", ["folder.part"]),
        ("/folder.part", ["folder.part"]),
        ("", ["folder"]),
    ]
    assert (tmp_path / "folder" / "file").read_text() == "new"


def test_a_folder_that_is_not_finished_leaves_nothing(tmp_path):
    with suppress(RuntimeError), whole_folder(tmp_path / "folder") as part:
        (part / "file").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_never_takes_the_place_of_another(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("old")
    with pytest.raises(DataError, match="cannot be written"), whole_folder(tmp_path / "folder") as part:
        (part / "file").write_text("new")
    assert (tmp_path / "folder" / "file").read_text() == "old"
