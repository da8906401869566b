"""Builds the site of the documents: ``make docs``, or ``python docs/build.py``.

The pages are those of the repository, in the folders they have there. So a link from one document to another
is the same on the site, in an editor and where the repository is shown.
"""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path

from zensical.main import cli

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "build/pages"
"""What the site is built from; ``docs_dir`` in mkdocs.yml."""

SHOWN = (
    "*.md",
    "docs/**/*.md",
    "docs/figures/*.svg",
    "benchmarks/*/*.md",
    "examples/**/*.md",
    "examples/**/*.py",
    "examples/**/*.toml",
)
"""The files that are pages, or that pages show or link to."""


class Told(logging.Handler):
    """Prints the warnings of docstrings and extensions, and counts them: Zensical's own checks do not."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Take one down."""
        self.count += 1
        print(f"{record.name}: {record.getMessage()}", file=sys.stderr)


def stage() -> None:
    """Copy what is shown into a folder of its own."""
    shutil.rmtree(PAGES, ignore_errors=True)
    for pattern in SHOWN:
        for path in ROOT.glob(pattern):
            copy = PAGES / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)


def main() -> None:
    """Build it; a warning is an error."""
    stage()
    told = Told(logging.WARNING)
    logging.getLogger().addHandler(told)
    words = ["build", "--clean", "--strict", "--config-file", str(ROOT / "mkdocs.yml")]
    try:
        cli.main(words, standalone_mode=False)
    except RuntimeError as error:  # it has said what is wrong
        sys.exit(str(error))
    if told.count:
        sys.exit(f"{told.count} warnings, which are errors here")
    print(f"the site is in {ROOT / 'build/site'}")


if __name__ == "__main__":
    main()
