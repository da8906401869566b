"""Ray's own processes on this machine: those that make it the head of a cluster, or part of one.

Each is one ``ray start --block``, which ends what it started when it is told to; so nothing is ever ended
but what was started here. Of a head that is to outlive its starter a note is left in ~/.akkordeon.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from akkordeon.core.errors import ClusterError
from akkordeon.engines.ray.cluster.connection import (
    SYSTEM_CONFIG,
    answers,
    is_member,
    own_address,
    parse_address,
    probe,
    require_ray,
    token_file,
    token_here,
)

__all__ = [
    "check_listen",
    "end_head",
    "end_member",
    "ensure_token",
    "is_loopback",
    "is_ours",
    "member",
    "member_again",
    "start_head",
]

START_S = 60.0
"""How long a head may take to answer."""

STARTED = "Ray runtime started"
"""What Ray says then."""

END_S = 20.0
"""How long it may take to end."""

ALONE_S = 2 * START_S
"""How long one command waits for another that starts a head at the same address."""

POLL_S = 0.1
"""How often it is seen what has become of a process."""

CONNECT_S = 2.0
"""How long it may take to answer one who asks."""


def ensure_token() -> str | None:
    """See that there is a token where Ray looks for one.

    Returns:
        The token if it was made now, None if there was one.
    """
    if token_here() is not None:
        return None
    path = token_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(32)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        os.fchmod(file.fileno(), 0o600)  # also where it was there before, and empty
        file.write(token)
    return token


def check_listen(address: str) -> bool:
    """Whether a cluster answers there that lets us in; if none does, one could be started.

    Raises:
        ClusterError: the port is taken, or the address is not of this machine, or the token is wrong.
    """
    with _alone(address):
        return _listens(address)


def _listens(address: str) -> bool:
    host, port = parse_address(address)
    if answers(host, port, CONNECT_S) and _is_cluster(address):
        return True
    _check_free(host, port)
    return False


def start_head(address: str, dashboard: bool = False) -> bool:
    """See that a cluster's head answers there, which lets us in; one is started if none does.

    Returns:
        Whether it was started now.

    Raises:
        ClusterError: the port is taken, or the address is not of this machine, or Ray does not start.
    """
    require_ray()
    with _alone(address):
        return False if _listens(address) else _started(address, dashboard)


def _started(address: str, dashboard: bool) -> bool:
    host, port = parse_address(address)
    _end_all(_noted(address))  # what is left of one that was killed
    log = _note(address).with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    options = ["--head", f"--node-ip-address={host}", f"--port={port}", f"--include-dashboard={dashboard}"]
    options.append(f"--system-config={json.dumps(SYSTEM_CONFIG)}")
    with log.open("w") as out:
        process = subprocess.Popen(
            _ray_start(*options),
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            env=_env(),
            start_new_session=True,
        )
    _write_note(address, [process.pid])
    deadline_s = time.monotonic() + START_S
    try:
        while not (answers(host, port, CONNECT_S) and is_member(address)):
            if process.poll() is not None or time.monotonic() > deadline_s:
                last = " ".join(log.read_text().split())[-300:]
                raise ClusterError(f"Ray did not start at {address}; its log {log} ends: {last}")
            time.sleep(POLL_S)
        probe(address)
        _write_note(address, [process.pid, *_below(process.pid)])
    except BaseException:
        end_head(address)
        raise
    return True


@contextmanager
def _alone(address: str) -> Iterator[None]:
    """Have others of this machine who would start a head there wait until it answers."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    lock = _note(address).with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    deadline_s = time.monotonic() + ALONE_S
    with lock.open("w") as file:
        while not _taken(fcntl, file):
            if time.monotonic() > deadline_s:
                raise ClusterError(
                    f"another command has been starting Ray at {address} for {ALONE_S:g} s; look at it, "
                    "or choose another port with --listen"
                )
            time.sleep(POLL_S)
        yield


def _taken(fcntl: Any, file: IO[str]) -> bool:
    """Whether the lock is ours now; it ends with this process."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_loopback(address: str) -> bool:
    """Whether an address is one that other machines could not reach."""
    host, _ = parse_address(address)
    return host == "localhost" or host.startswith("127.")


def member(address: str, resources: str | None = None) -> subprocess.Popen[bytes]:
    """Make this machine part of a cluster, until the process returned is ended (SIGTERM, SIGINT).

    Raises:
        ClusterError: there is no cluster there, it does not let us in, or Ray does not start here.
    """
    probe(address)
    options = [f"--address={address}", *([f"--resources={resources}"] if resources else [])]
    if (own := own_address(address)) is not None:
        options.append(f"--node-ip-address={own}")
    log = Path.home() / ".akkordeon" / f"member_{os.getpid()}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        process = subprocess.Popen(
            _ray_start(*options), stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=_env()
        )
    try:
        _wait_until_started(process, log, address)
    except BaseException:
        process.terminate()
        raise
    log.unlink()
    return process


def member_again(address: str, resources: str | None, patience_s: float) -> subprocess.Popen[bytes]:
    """As :func:`member`, once there is a cluster again.

    Raises:
        ClusterError: there is none by then, and why.
    """
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            return member(address, resources)
        except ClusterError as error:
            if time.monotonic() > deadline_s:
                raise ClusterError(f"{address} was away for {patience_s:g} s: {error}") from error
        time.sleep(POLL_S)


def end_member(process: subprocess.Popen[bytes], at_once: bool) -> None:
    """Have this machine leave a cluster; ``at_once``: without waiting for what is at work here."""
    if not at_once:
        process.terminate()
        return
    require_ray()
    import psutil  # comes with Ray

    with suppress(psutil.NoSuchProcess):
        for each in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            with suppress(psutil.NoSuchProcess):
                each.kill()


def is_ours(address: str) -> bool:
    """Whether the head there was started by us, on this machine."""
    return bool(_noted(address))


def end_head(address: str) -> bool:
    """End the head there, if it was started by us; what is left of it, if it was killed.

    Returns:
        Whether there was one, and it has ended.
    """
    noted = _noted(address)
    if not noted:
        return False
    with suppress(ProcessLookupError):
        os.kill(noted[0], signal.SIGTERM)  # the first of them ends the others
    deadline_s = time.monotonic() + END_S
    while _began(noted[0]) is not None and time.monotonic() < deadline_s:
        time.sleep(POLL_S)
    _end_all(_noted(address))
    _note(address).unlink(missing_ok=True)
    return True


def _end_all(numbers: list[int]) -> None:
    """End processes at once."""
    for number in numbers:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    deadline_s = time.monotonic() + END_S
    while any(_began(number) is not None for number in numbers) and time.monotonic() < deadline_s:
        time.sleep(POLL_S)


def _wait_until_started(process: subprocess.Popen[bytes], log: Path, address: str) -> None:
    deadline_s = time.monotonic() + START_S
    while STARTED not in (text := " ".join(log.read_text().split())):
        if process.poll() is not None or time.monotonic() > deadline_s:
            raise ClusterError(f"Ray did not join {address}; its log {log} ends: {text[-300:]}")
        time.sleep(POLL_S)


# ── details ──────────────────────────────────────────────────────────────────────────────────────────


def _ray_start(*options: str) -> list[str]:
    ports = ["--min-worker-port=0", "--max-worker-port=0"]  # whichever are free: clusters may be neighbours
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    return [*start, *ports, *options]


def _env() -> dict[str, str]:
    return {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", **os.environ}


def _is_cluster(address: str) -> bool:
    """Whether a cluster answers there; what has ended since somebody listened was none."""
    try:
        probe(address)
    except ClusterError as error:
        if not answers(*parse_address(address), CONNECT_S):
            return False
        if "no Ray cluster" not in str(error):
            raise
        raise ClusterError(
            f"{address} is in use by something that is no Ray cluster; choose another port with --listen"
        ) from error
    return True


def _check_free(host: str, port: int) -> None:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError as error:
            raise ClusterError(
                f"this machine cannot listen at {host}:{port}: {error.strerror or error}; give --listen an "
                "address of its own and a free port"
            ) from error


def _note(address: str) -> Path:
    """Of the head of that port: 127.0.0.1 and localhost are one."""
    return Path.home() / ".akkordeon" / "heads" / f"{parse_address(address)[1]}.json"


def _write_note(address: str, numbers: list[int]) -> None:
    """Note the processes of a head: the one that began the others, then those."""
    _note(address).write_text(json.dumps([[number, _began(number)] for number in numbers]))


def _noted(address: str) -> list[int]:
    """Numbers of the processes of a head that we started, in that order; those that live."""
    try:
        noted = [(int(number), began) for number, began in json.loads(_note(address).read_text())]
    except (OSError, ValueError, TypeError):
        return []
    return [number for number, began in noted if began is not None and _began(number) == began]


def _below(pid: int) -> list[int]:
    """Numbers of the processes that a process began, and those began."""
    import psutil  # comes with Ray

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def _began(pid: int) -> float | None:
    """When a process began, which tells it from a later one of the same number; None if it has ended."""
    require_ray()
    import psutil  # comes with Ray

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.NoSuchProcess:
        return None
