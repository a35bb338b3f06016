"""Ray Serve with the app: started where none runs, watched, and ended with the command that asked for it."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, LoggingConfig

from pipelines.cluster.session import ensure_ray, quietly

log = logging.getLogger(__name__)
NAME = "isthmus"
_CONTROLLER, _NAMESPACE = "SERVE_CONTROLLER_ACTOR", "serve"
_HEAD = "node:__internal_head__"
_POLL_S, _WATCH_S = 0.5, 2.0
_KEEP_ALIVE_S = 10
# The app gives up by itself; the proxy is there for an app that does not even do that.
_PROXY_MARGIN_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Where Serve's proxy, on the cluster's head node, listens.

    Attributes:
        host: the interface.
        port: 0 takes one that is free.
        time_limit_s: after this the app has answered.
    """

    host: str
    port: int
    time_limit_s: float


@contextlib.contextmanager
def deployed(app: serve.Application, at: Listening, say: Callable[[str], None]) -> Iterator[str]:
    """The application, answering at the address that is given; at the end it goes, and so does a Serve started for it.

    Args:
        app: the application.
        at: where its proxy listens.
        say: called with what is worth a line while it waits.

    Raises:
        OSError: the port is taken.
        RuntimeError: the cluster's Serve listens elsewhere or has such an application, or a replica cannot start.
    """
    was_there = ray.is_initialized()
    ensure_ray()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    there = _there()
    if there is not None:
        _refuse_unfit(there, at)
    try:
        options = there or _start(at)
        serve.run_many([serve.RunTarget(target=app, name=NAME)], wait_for_applications_running=False)
        _wait_until_running(say)
        yield _address(options)
    finally:
        # Ray still speaks of the controller's death when that is over.
        with quietly():
            _end(is_ours=there is None)
            if not was_there:
                ray.shutdown()


def watch(say: Callable[[str], None]) -> None:
    """Watch the application; a line when replicas are lost, and when they are there again.

    Raises:
        KeyboardInterrupt: on Ctrl-C, and on SIGTERM, by which containers are stopped.
        RuntimeError: somebody else ended the application.
    """
    ended = threading.Event()

    def end(number: int, frame: object) -> None:
        ended.set()
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        # SIGTERM in place of Ray's own handler, which prints a trace. What is raised amid Ray's code may be lost there.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, end)
    before = ""
    while not ended.is_set():
        found = serve.status().applications.get(NAME)
        if found is None:
            raise RuntimeError(f"the application {NAME!r} was ended from elsewhere")
        now = _told(found)
        if before and now != before:
            say(now)
        before = now
        ended.wait(_WATCH_S)
    raise KeyboardInterrupt


def _told(found: ApplicationStatusOverview) -> str:
    """How many replicas of each deployment there are, in words."""
    counted = (
        f"{name}: {', '.join(f'{count} {state.lower()}' for state, count in sorted(one.replica_states.items()))}"
        for name, one in sorted(found.deployments.items())
    )
    return "; ".join(counted)


def _refuse_unfit(there: HTTPOptions, at: Listening) -> None:
    """Refuse a Serve that is there already, if it does not listen where it should or has such an application.

    Raises:
        RuntimeError: says what to do.
    """
    # Its interface is fixed for good, and another one may be open to more people than was asked for.
    if there.host != at.host or at.port not in (0, there.port):
        raise RuntimeError(
            f"this cluster's Ray Serve listens at {there.host}:{there.port} already, not at {at.host}:{at.port}; "
            f"give --host {there.host} --port {there.port}, or end it (`serve shutdown`)"
        )
    if NAME in serve.status().applications:
        raise RuntimeError(
            f"this cluster serves an application {NAME!r} already; end its `isthmus serve`, or, if that is gone, "
            "what it left (`serve shutdown`)"
        )


def _there() -> HTTPOptions | None:
    """The options of the Serve that runs on the cluster, if any: which its own `start` would ignore with a warning."""
    try:
        controller = ray.get_actor(_CONTROLLER, namespace=_NAMESPACE)
    except ValueError:
        return None
    return cast(HTTPOptions, ray.get(controller.get_http_config.remote()))


def _start(at: Listening) -> HTTPOptions:
    port = _free_port(at) if _is_head() or at.port == 0 else at.port
    options = HTTPOptions(
        host=at.host,
        port=port,
        request_timeout_s=at.time_limit_s + _PROXY_MARGIN_S,
        keep_alive_timeout_s=_KEEP_ALIVE_S,
    )
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options=options,
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
    )
    return options


def _free_port(at: Listening) -> int:
    """The port if it is free: of one that is taken Serve would say, after a minute, that its proxy does not come up.

    Raises:
        OSError: it is taken.
    """
    family = socket.AF_INET6 if ":" in at.host else socket.AF_INET
    with socket.create_server((at.host if _is_head() else "", at.port), family=family) as free:
        return int(free.getsockname()[1])


def _head() -> dict[str, Any]:
    return next(dict(node) for node in ray.nodes() if node["Alive"] and _HEAD in node["Resources"])


def _is_head() -> bool:
    return bool(_head()["NodeID"] == ray.get_runtime_context().get_node_id())


def _address(options: HTTPOptions) -> str:
    """Where people find it; of a head node that is not this machine, its own address."""
    host = str(options.host)
    if not _is_head() and host in ("0.0.0.0", "::"):
        host = str(_head()["NodeManagerAddress"])
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{options.port}/"


def _wait_until_running(say: Callable[[str], None]) -> None:
    """Wait for all replicas.

    Raises:
        RuntimeError: one cannot start.
    """
    said = set()
    while True:
        found = serve.status().applications[NAME]
        if found.status == ApplicationStatus.RUNNING:
            return
        if found.status == ApplicationStatus.DEPLOY_FAILED:
            reason = [one.message for one in found.deployments.values() if one.message] or [found.message]
            raise RuntimeError(f"a replica cannot start: {reason[0].strip().splitlines()[-1]}")
        for one in found.deployments.values():
            # Of a traceback its last line; of replicas that find no room, what room they want.
            line = (one.message.strip().splitlines() or [""])[-1]
            if line and line not in said:
                said.add(line)
                say(f"{line} (--cpus-per-replica asks for less)" if "CPU" in line else line)
        time.sleep(_POLL_S)


def _end(*, is_ours: bool) -> None:
    """Take the application away; and Serve, if it was started for it and nothing else runs on it."""
    with contextlib.suppress(RayError, RayServeException):
        if NAME in serve.status().applications:
            serve.delete(NAME)
        if is_ours and not serve.status().applications:
            serve.shutdown()
