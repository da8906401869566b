"""Reaching a Ray cluster, or starting one: what can go wrong is found out before Ray is asked.

Ray takes 20 to 122 s to fail and does not say why, so host, port and token are tried first, in seconds.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from akkordeon.core.errors import ClusterError
from akkordeon.engines.ray.cluster.signals import signals_kept
from akkordeon.engines.ray.cluster.waits import ask, within

__all__ = [
    "NAMESPACE",
    "SYSTEM_CONFIG",
    "ClusterProbe",
    "is_connected",
    "is_member",
    "join",
    "own_address",
    "parse_address",
    "parse_target",
    "probe",
    "require_ray",
    "token_here",
]

NAMESPACE = "akkordeon"
"""Where our names are in a cluster."""

SYSTEM_CONFIG = {
    "max_direct_call_object_size": 600_000,
    "maximum_gcs_destroyed_actor_cached_count": 1000,
    "task_events_max_num_task_in_gcs": 1000,
}
"""What the heads that we start are told. Up to so many bytes travel within a call: Ray's own 100,000 makes a
message of 200 KB, which then goes through shared memory, cost twice as much as it must. A head keeps so many
of the processes and calls that are no more: Ray's own 100,000 of each grow for weeks."""

LEAVE_S = 10.0
"""How long Ray may take to leave a cluster, or to end one; where the head is dead it waits for it."""

PROBE_S = 3.0
"""How long a host, and then its cluster, may take to answer."""

MISSING = "this needs Ray, which is not installed: pip install 'akkordeon[ray]'"


def require_ray() -> ModuleType:
    """Ray, imported late: it takes long, and most runs do without.

    Raises:
        ClusterError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ClusterError(MISSING) from error
    return ray


def join(address: str | None) -> Callable[[], None]:
    """Connect this process to a cluster: the one it is connected to, the one there, or a new one of its own.

    Args:
        address: HOST:PORT; None is whatever there is, else a local cluster that ends with us.

    Returns:
        What undoes it.

    Raises:
        ClusterError: there is no cluster, or it does not let us in.
    """
    ray = require_ray()
    if ray.is_initialized():
        _check_same(ray, address)
        return lambda: None
    if address is not None:
        probe(address)
        _check_member(address)
    with _token_mode(), signals_kept():
        try:
            ray.init(
                address=address or "local",
                **({"_system_config": SYSTEM_CONFIG} if address is None else {}),
                **({} if (own := own_address(address)) is None else {"_node_ip_address": own}),
                namespace=NAMESPACE,
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level="error",
            )
        except Exception as error:
            raise ClusterError(_why(error, address)) from error
    return _leave


def is_connected() -> bool:
    """Whether this process is part of a cluster, or still on its way out."""
    return bool(require_ray().is_initialized())


def _leave() -> None:
    within(LEAVE_S, _shut_down)


def _shut_down() -> None:
    with signals_kept():  # until all of it is done, though nobody waits for that
        require_ray().shutdown()


def _check_same(ray: ModuleType, address: str | None) -> None:
    here = ray.get_runtime_context().gcs_address
    if address is None or address == here:
        return
    host, port = parse_address(address)
    if not (here.endswith(f":{port}") and host in ("127.0.0.1", "localhost")):  # Ray gives the node's own
        raise ClusterError(
            f"this process is connected to the Ray cluster at {here} already; "
            f"end that (ray.shutdown()) before it joins {address}"
        )


def is_member(address: str) -> bool:
    """Whether a process of Ray's on this machine is part of the cluster there."""
    import psutil  # comes with Ray

    _, port = parse_address(address)
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or [""]
        if words[0].endswith("raylet") and any(
            word.startswith("--gcs-address=") and word.endswith(f":{port}") for word in words
        ):
            return True
    return False


def _check_member(address: str) -> None:
    """Refuse at once where Ray would look for a minute for such a process."""
    if is_member(address):
        return
    raise ClusterError(
        f"this machine is no part of the cluster at {address}: run `akkordeon join {address}` on it first, "
        "in another terminal"
    )


def _why(error: Exception, address: str | None) -> str:
    text = " ".join(str(error).split())
    if "node_ip_address" in text or "raylet" in text.lower():
        return (
            f"this machine is no part of the cluster at {address}; run `akkordeon join {address}` on it "
            f"first ({text[:200]})"
        )
    where = "a local Ray cluster could not be started" if address is None else f"Ray could not join {address}"
    return f"{where}: {type(error).__name__}: {text[:300]}"


# ── probes ───────────────────────────────────────────────────────────────────────────────────────────


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT.

    Raises:
        ClusterError: it is not of that form.
    """
    host, colon, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
        raise ClusterError(f"an address is HOST:PORT, as in 192.168.1.23:25520; got {address!r}")
    return host, int(port)


def own_address(address: str | None) -> str | None:
    """The address of this machine that leads to a cluster; None if it makes no difference."""
    if address is None:
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as towards:
        try:
            towards.connect(parse_address(address))  # sends nothing
        except OSError:
            return None
        own: str = towards.getsockname()[0]
    return None if own.startswith("127.") else own


def answers(host: str, port: int, timeout_s: float = PROBE_S) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection((host, port), timeout_s).close()
    except OSError:
        return False
    return True


class ClusterProbe:
    """Where Ray's processes are without which this one can do nothing: its node's, and the cluster's head."""

    def __init__(self) -> None:
        ray = require_ray()
        context = ray.get_runtime_context()
        self._head = parse_address(context.gcs_address)
        nodes = {node["NodeID"]: node for node in ask(ray.nodes, "its machines")}
        mine = nodes[context.get_node_id()]
        self._node = mine["NodeManagerAddress"], int(mine["NodeManagerPort"])

    def node_answers(self) -> bool:
        """Whether Ray's process on this machine is there."""
        return answers(*self._node) or answers(*self._node)

    def head_answers(self) -> bool:
        """Whether the head of the cluster is there."""
        return answers(*self._head)


def parse_target(target: str) -> tuple[str, str]:
    """Address and name of HOST:PORT/NAME.

    Raises:
        ClusterError: it is not of that form.
    """
    address, slash, name = target.partition("/") if isinstance(target, str) else ("", "", "")
    if not (slash and name):
        raise ClusterError(
            f"a network is HOST:PORT/NAME, as in 192.168.1.23:25520/digits-net; got {target!r}"
        )
    return address, name


def probe(address: str) -> None:
    """Find out whether a cluster answers there and takes our token.

    Raises:
        ClusterError: no, and why.
    """
    host, port = parse_address(address)
    if find_spec("ray") is None:
        raise ClusterError(MISSING)
    try:
        socket.create_connection((host, port), PROBE_S).close()
    except OSError as error:
        raise ClusterError(
            f"nothing answers at {address} ({error.strerror or error}); is the network started there, "
            "and is the address right?"
        ) from error
    answer = _ask(address)
    if answer == "UNAUTHENTICATED":
        given = "this process has no token" if token_here() is None else "the token here is another"
        raise ClusterError(
            f"the cluster at {address} refuses us: {given}; give it the one that `network start` showed, "
            "as in export RAY_AUTH_TOKEN=…"
        )
    if answer != "OK":
        raise ClusterError(f"what answers at {address} is no Ray cluster ({answer.lower()})")


def _ask(address: str) -> str:
    """The status with which the cluster's head answers us."""
    try:
        import grpc  # comes with Ray, and is imported much sooner
    except ImportError as error:
        raise ClusterError(MISSING) from error
    token = token_here()
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with _channel(grpc, address) as channel:
        call = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
        try:
            call(b"", metadata=metadata, timeout=PROBE_S)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


def _channel(grpc: ModuleType, address: str) -> Any:
    if os.environ.get("RAY_USE_TLS", "0") != "1":
        return grpc.insecure_channel(address)
    files = ("RAY_TLS_CA_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_SERVER_CERT")
    try:
        authority, key, certificate = (Path(os.environ[name]).read_bytes() for name in files)
    except (KeyError, OSError) as error:
        raise ClusterError(f"RAY_USE_TLS=1 needs {', '.join(files)}: {error!r}") from error
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(authority, key, certificate))


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────────


def token_file() -> Path:
    """Where Ray looks for a token that is not in the environment."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def token_here() -> str | None:
    """The token that Ray will find: in the environment, in the file named there, or in ~/.ray."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    try:
        return token_file().read_text().strip() or None
    except OSError:
        return None


@contextmanager
def _token_mode() -> Iterator[None]:
    """Authentication by token, unless the environment has a mode; the environment is put back."""
    before = os.environ.get("RAY_AUTH_MODE")
    if before is None:
        os.environ["RAY_AUTH_MODE"] = "token"
        from ray._raylet import Config  # type: ignore[attr-defined]  # compiled

        Config.initialize("")  # Ray may have been imported, and have read the environment, before
    try:
        yield
    finally:
        if before is None:
            del os.environ["RAY_AUTH_MODE"]
