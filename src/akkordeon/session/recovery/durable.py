"""Files and folders that are there under their names only once they are whole, and on the disk."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from akkordeon.core.errors import DataError

__all__ = ["PART", "folder_to_disk", "to_disk", "whole_file", "whole_folder"]

PART = ".part"
"""What a name ends with as long as what it names is not whole."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The name under which to write a file that is to appear at ``path`` once it is whole.

    Raises:
        DataError: it cannot be written.
    """
    part = path.with_name(path.name + PART)
    try:
        yield part
        to_disk(part)
        os.replace(part, path)
        to_disk(path.parent)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """The folder in which to write the files of one that is to appear at ``path`` once they are all whole.

    Raises:
        DataError: it cannot be written, or is there already.
    """
    part = path.with_name(path.name + PART)
    try:
        part.mkdir()
        yield part
        folder_to_disk(part)
        os.rename(part, path)
        to_disk(path.parent)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def to_disk(path: Path) -> None:
    """Have what was written there outlive the machine; a file, or the names in a folder."""
    if path.is_dir() and sys.platform == "win32":
        return  # where folders cannot be opened
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def folder_to_disk(path: Path) -> None:
    """Likewise, a folder with the files in it."""
    for file in path.iterdir():
        to_disk(file)
    to_disk(path)


def _not_written(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be written: {error.strerror or error}")
