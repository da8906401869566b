"""What a run happens on: versions and the machine."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

import numpy
import torch

__all__ = ["Environment", "environment"]


@dataclass(frozen=True, slots=True)
class Environment:
    """Versions and the machine, without names of people or machines.

    Attributes:
        began: when, in ISO 8601, in UTC.
        akkordeon: its version, as the others.
        python: likewise.
        torch: likewise.
        numpy: likewise.
        system: the operating system and its version.
        machine: the kind of processor.
        cores: as many as there are.
        gpus: their names.
    """

    began: str
    akkordeon: str
    python: str
    torch: str
    numpy: str
    system: str
    machine: str
    cores: int
    gpus: tuple[str, ...] = ()


def environment() -> Environment:
    """That of this process, now."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return Environment(
        began=datetime.now(UTC).isoformat(timespec="seconds"),
        akkordeon=version("akkordeon"),
        python=platform.python_version(),
        torch=str(torch.__version__),
        numpy=numpy.__version__,
        system=f"{platform.system()} {platform.release()}",
        machine=platform.machine(),
        cores=os.cpu_count() or 1,
        gpus=tuple(torch.cuda.get_device_name(i) for i in gpus),
    )
