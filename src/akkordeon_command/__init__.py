"""The command ``akkordeon``, which is there before the package is: to load that takes seconds.

What it shows of all commands together needs no package, and is there at once.

A Ctrl-C meanwhile ends the process at once, as any program that has not begun, instead of a traceback from
wherever PyTorch's own loading happens to be. So this cannot be a part of the package.
"""

from __future__ import annotations

import os
import signal
import sys

__all__ = ["main"]

INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C, as shells have it."""


def main() -> None:
    """The entry point."""
    try:
        handler = signal.getsignal(signal.SIGINT)
        if handler is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        from akkordeon_command import overview

        if sys.argv[1:] in overview.WORDS and overview.COMPLETION not in os.environ:
            overview.listed()()
        from akkordeon.cli import main as cli

        signal.signal(signal.SIGINT, handler)
        cli.main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
