"""What was found, as lines of a file, so that a study goes on where it was broken off."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Kept"]


class Kept:
    """Finds each thing once.

    Args:
        file: of JSON lines; it need not be there yet. A last line that breaks off is dropped.
        tell: hears of each thing that was found, what and what it is.
    """

    def __init__(self, file: Path, tell: Callable[[str, Any], None] = lambda what, found: None) -> None:
        self._file, self._tell = file, tell
        self._found: dict[str, Any] = {}
        if not file.exists():
            return
        lines = file.read_text().splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            file.write_text("".join(lines[:-1]))
            lines.pop()
        for line in lines:
            what, found = json.loads(line)
            self._found[what] = found

    def __call__(self, find: Callable[[], Any], **what: Any) -> Any:
        """What was found of this, or is now; plain data.

        Args:
            find: finds it.
            what: all that it depends on.
        """
        name = json.dumps(what, sort_keys=True)
        if name not in self._found:
            found = find()
            with self._file.open("a") as file:
                file.write(json.dumps([name, found]) + "\n")
            self._found[name] = found
            self._tell(name, found)
        return self._found[name]
