"""Runs the app on Ray Serve: starts Serve if none runs, watches the app, and removes it when the command ends."""

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
# The app limits the time itself; the proxy's limit is for an app that fails to.
_PROXY_MARGIN_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Listening:
    """The address of Serve's proxy, which runs on the cluster's head node.

    Attributes:
        host: the network interface.
        port: the port; 0 chooses a free one.
        time_limit_s: the app's time limit for a request, in seconds; the proxy allows 5 s more.
    """

    host: str
    port: int
    time_limit_s: float


@contextlib.contextmanager
def deployed(app: serve.Application, at: Listening, say: Callable[[str], None]) -> Iterator[str]:
    """Run the application and yield its address; afterwards remove it, and stop Serve if it was started for it.

    Args:
        app: the application.
        at: where its proxy listens.
        say: called with progress messages while the replicas start.

    Raises:
        OSError: the port is taken.
        RuntimeError: the cluster's Serve listens elsewhere or already has such an application, or a replica cannot
            start.
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
        # Ray still logs the controller's end after it has happened.
        with quietly():
            _end(is_ours=there is None)
            if not was_there:
                ray.shutdown()


def watch(say: Callable[[str], None]) -> None:
    """Watch the application; report when replicas are lost and when they are back.

    Args:
        say: called with a line for each change.

    Raises:
        KeyboardInterrupt: on Ctrl-C, and on SIGTERM, which stops containers.
        RuntimeError: somebody else ended the application.
    """
    ended = threading.Event()

    def end(number: int, frame: object) -> None:
        ended.set()
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        # This replaces Ray's own SIGTERM handler, which prints a trace. An exception raised inside Ray's code may get
        # lost, hence the event.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, end)
    before = ""
    while not ended.is_set():
        found = serve.status().applications.get(NAME)
        if found is None:
            raise RuntimeError(f"the application {NAME!r} was ended by somebody else; run `isthmus serve` again")
        now = _told(found)
        if before and now != before:
            say(now)
        before = now
        ended.wait(_WATCH_S)
    raise KeyboardInterrupt


def _told(found: ApplicationStatusOverview) -> str:
    """The number of replicas of each deployment by state, as text."""
    counted = (
        f"{name}: {', '.join(f'{count} {state.lower()}' for state, count in sorted(one.replica_states.items()))}"
        for name, one in sorted(found.deployments.items())
    )
    return "; ".join(counted)


def _refuse_unfit(there: HTTPOptions, at: Listening) -> None:
    """Fail if the running Serve listens at another address or already has such an application.

    Raises:
        RuntimeError: names the conflict and the remedy.
    """
    # Serve's address cannot be changed, and another one may be open to more people than the user wants.
    if there.host != at.host or at.port not in (0, there.port):
        raise RuntimeError(
            f"this cluster's Ray Serve already listens at {there.host}:{there.port}, not at {at.host}:{at.port}; "
            f"use --host {there.host} --port {there.port}, or stop Serve (`serve shutdown`)"
        )
    if NAME in serve.status().applications:
        raise RuntimeError(
            f"this cluster already serves an application {NAME!r}; end its `isthmus serve`, or, if that is gone, "
            "stop Serve (`serve shutdown`)"
        )


def _there() -> HTTPOptions | None:
    """The options of the cluster's running Serve, if any. A second `start` would ignore its options with a warning."""
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
    """The port, checked to be free. Otherwise Serve reports only after a minute that its proxy does not come up.

    Raises:
        OSError: the port is taken.
    """
    family = socket.AF_INET6 if ":" in at.host else socket.AF_INET
    with socket.create_server((at.host if _is_head() else "", at.port), family=family) as free:
        return int(free.getsockname()[1])


def _head() -> dict[str, Any]:
    return next(dict(node) for node in ray.nodes() if node["Alive"] and _HEAD in node["Resources"])


def _is_head() -> bool:
    return bool(_head()["NodeID"] == ray.get_runtime_context().get_node_id())


def _address(options: HTTPOptions) -> str:
    """The address for users. If the head node is another machine, that machine's address."""
    host = str(options.host)
    if not _is_head() and host in ("0.0.0.0", "::"):
        host = str(_head()["NodeManagerAddress"])
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{options.port}/"


def _wait_until_running(say: Callable[[str], None]) -> None:
    """Wait until all replicas run.

    Raises:
        RuntimeError: a replica cannot start.
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
            # The last line: of a traceback it is the error; for replicas without room it names the room they need.
            line = (one.message.strip().splitlines() or [""])[-1]
            if line and line not in said:
                said.add(line)
                say(f"{line} (lower --cpus-per-replica)" if "CPU" in line else line)
        time.sleep(_POLL_S)


def _end(*, is_ours: bool) -> None:
    """Remove the application. Stop Serve too if it was started for the app and nothing else runs on it."""
    with contextlib.suppress(RayError, RayServeException):
        if NAME in serve.status().applications:
            serve.delete(NAME)
        if is_ours and not serve.status().applications:
            serve.shutdown()
