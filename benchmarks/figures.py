"""What a benchmark is asked for, the memory that its process has, and the figures that it tells."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any


def options(document: str | None, quick: str) -> argparse.ArgumentParser:
    """Options that every benchmark has.

    Args:
        document: of the benchmark; its first line says what it is.
        quick: what ``--quick`` does.
    """
    parser = argparse.ArgumentParser(description=(document or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    return parser


def tell(figures: dict[str, Any], file: Path | None) -> None:
    """Print them, and write them to a file where one is given."""
    text = json.dumps(figures, indent=2)
    print(text)
    if file is not None:
        file.write_text(text)


def resident_mb() -> float:
    """What the process holds of the machine's memory, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
