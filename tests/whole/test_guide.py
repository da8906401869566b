"""What docs/guide.md lists completely."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields, is_dataclass
from pathlib import Path

from akkordeon.core import reports as metrics

GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"
NO_RECORDS = {"BatchCount"}


def test_the_table_of_records_has_every_record_with_all_its_fields():
    records = {
        name: [field.name for field in fields(thing)]
        for name, thing in vars(metrics).items()
        if inspect.isclass(thing) and is_dataclass(thing) and not name.startswith("_")
    }
    listed = {}
    for line in GUIDE.read_text(encoding="utf-8").splitlines():
        row = re.fullmatch(r"\| `([A-Z]\w+)` \|[^|]*\| ((?:`\w+` ?)+)\|", line)
        if row:
            listed[row[1]] = re.findall(r"`(\w+)`", row[2])
    assert listed == {name: names for name, names in records.items() if name not in NO_RECORDS}
