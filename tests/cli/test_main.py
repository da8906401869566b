"""The command itself: data, version, wrong numbers, and a Ctrl-C before all has begun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from tests.support.commands import akkordeon, alone, read_until
from tests.support.harness import WAIT_S
from typer.testing import CliRunner

from akkordeon.cli import main
from akkordeon.data import download
from akkordeon_command import overview


def test_data_are_downloaded_into_the_folder(tmp_path, monkeypatch):
    def fake(name: str, folder: str, progress: bool) -> list[Path]:
        return [Path(folder) / f"{name}.gz"]

    monkeypatch.setattr(download, "download", fake)
    assert akkordeon("data", "mnist", "--data-dir", tmp_path).stdout == f"{tmp_path}/mnist.gz\n"
    akkordeon("data", "mnist", expecting=2)
    akkordeon("data", "cifar", "--data-dir", tmp_path, expecting=2)


def test_the_version_is_that_of_the_package():
    assert akkordeon("--version").stdout == f"akkordeon {version('akkordeon')}\n"


@pytest.mark.parametrize("words", overview.WORDS, ids=" ".join)
def test_what_is_shown_before_the_package_is_loaded_is_what_the_commands_say(words):
    said = [CliRunner().invoke(app, words, prog_name="akkordeon") for app in (overview.listed(), main.app)]
    assert said[0].output == said[1].output != ""
    assert said[0].exit_code == said[1].exit_code


@pytest.mark.parametrize("words", overview.WORDS, ids=" ".join)
def test_help_and_version_do_not_wait_for_the_package(words):
    code = "import sys; sys.modules['akkordeon'] = sys.modules['torch'] = None\n"
    code += "from akkordeon_command import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=WAIT_S
    )
    assert "ImportError" not in done.stderr
    assert "akkordeon 0." in done.stdout or "Start and stop networks" in done.stdout + done.stderr


def test_a_shell_is_told_how_a_line_goes_on_after_a_command():
    code = "import sys; sys.argv[:] = ['akkordeon']\n"
    code += "from akkordeon_command import main; main()"
    for line, word in (("akkordeon train --tr", "--trace"), ("akkordeon network ", "start")):
        asked = {"_AKKORDEON_COMPLETE": "complete_bash", "COMP_WORDS": line}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **asked, "COMP_CWORD": str(line.count(" "))},
            capture_output=True,
            text=True,
            timeout=WAIT_S,
        )
        assert word in done.stdout.split(), done


@pytest.mark.parametrize("command", ["train", "downpour"])
def test_a_seed_that_is_too_large_is_told(command):
    refused = akkordeon(command, "--seed", 10**23, expecting=2)
    assert "Invalid value for '--seed'" in refused.stderr


EARLY = """
import os, signal, sys

class Interrupts:
    def find_spec(self, name, path, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # as on a terminal, whoever runs the tests
sys.meta_path.insert(0, Interrupts())
from akkordeon_command import main
main()
"""


def test_ctrl_c_while_the_package_is_loaded_is_no_traceback():
    done = subprocess.run(
        [sys.executable, "-c", EARLY, "train"], capture_output=True, text=True, timeout=WAIT_S
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_ctrl_c_before_the_training_is_no_traceback(tmp_path):
    (tmp_path / "waits.py").write_text(
        "import threading\ndef make():\n    print('waiting', flush=True)\n    threading.Event().wait(60)\n"
    )
    process = alone("train", f"{tmp_path / 'waits.py'}:make")
    read_until(process, "waiting")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=WAIT_S)
    assert (process.returncode, errors) == (130, "interrupted\n")
