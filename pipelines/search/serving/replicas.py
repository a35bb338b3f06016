"""The app as a Ray Serve application: replicas that each hold the whole app, and a small store that they share.

A replica is the same app as in a single process, with its own threads, opened tables and encoders. A picture that a
user brings must be found by whichever replica the user reaches next, so it is stored in a deployment of its own, with
one replica and bounded memory. Serve keeps the arguments of deployments, the token included, pickled in Ray's own
store. It neither logs them nor shows them in its dashboard, where environment variables would appear.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from pipelines.search.serving.app import ServeSettings, create_app
from pipelines.search.serving.row_images import HeldPictures
from pipelines.store.storage import TableRef

# A replica takes as many requests as it has threads; this many more wait before Serve answers 503.
_MOST_ONGOING, _MOST_QUEUED = 64, 200
_MOST_CALLS = 1_000
_MOST_STARTS = 3
_STORE_PATIENCE_S = 10.0
_NEAR, _NEAR_BYTES = 100, 16 * 1024 * 1024
_END_WAIT_S, _END_LIMIT_S = 0.5, 10.0
# One log line per request would reveal what people search for.
_LOGGING = LoggingConfig(log_level="WARNING", enable_access_log=False)


@dataclass(frozen=True, kw_only=True)
class ReplicaSettings:
    """The number of replicas, and their resources.

    Attributes:
        replicas: number of replicas of the app.
        cpus: cores that each replica reserves; torch uses as many threads, at least one.
    """

    replicas: int = 1
    cpus: float = 1.0


class SharedPictures:
    """The shared store, as seen by one replica, with a local cache."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle
        self._near = HeldPictures(_NEAR, _NEAR_BYTES)

    def put(self, digest: str, small: bytes) -> None:
        """Store a picture for all replicas.

        Raises:
            ConnectionError: the store does not answer, and no new one has replaced it within 10 seconds.
        """
        self._call("put", digest, small)
        self._near.put(digest, small)

    def get(self, digest: str) -> bytes:
        """The picture, as a JPEG.

        Raises:
            KeyError: it was never stored, or was dropped since.
            ConnectionError: the store does not answer, and no new one has replaced it within 10 seconds.
        """
        try:
            return self._near.get(digest)
        except KeyError:
            found = self._call("get", digest)
        if found is None:
            raise KeyError(digest)
        self._near.put(digest, found)
        return bytes(found)

    def _call(self, method: str, *arguments: Any) -> Any:
        """Call the store. The call is retried while a new store may still replace one that died."""
        again = Retrying(
            retry=retry_if_exception_type((RayError, RayServeException)),
            stop=stop_after_delay(_STORE_PATIENCE_S),
            wait=wait_fixed(0.2),
            reraise=True,
        )
        call = getattr(self._handle, method)
        try:
            return again(lambda: call.remote(*arguments).result(timeout_s=_STORE_PATIENCE_S))
        except (RayError, RayServeException, TimeoutError) as error:
            raise ConnectionError(f"the store of brought pictures does not answer: {type(error).__name__}") from error


class Pictures:
    """The pictures that users brought, for all replicas."""

    def __init__(self) -> None:
        self._held = HeldPictures()

    def put(self, digest: str, small: bytes) -> None:
        """Store a picture under its digest."""
        self._held.put(digest, small)

    def get(self, digest: str) -> bytes | None:
        """The picture; None if it is not stored, because Ray would wrap an exception in one of its own."""
        try:
            return self._held.get(digest)
        except KeyError:
            return None


class App:
    """A replica of the app."""

    def __init__(self, tables: Mapping[str, TableRef], settings: ServeSettings, pictures: DeploymentHandle) -> None:
        self._made = create_app(tables, settings, SharedPictures(pictures))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The app; its middleware handles every path."""
        return self._made

    def check_health(self) -> None:
        """Serve calls this regularly, and replaces a replica that fails it.

        Raises:
            RuntimeError: the replica no longer answers anything.
        """
        if self._made.state.steps.is_stuck():
            raise RuntimeError("no request has ended for several time limits")


def application(tables: Mapping[str, TableRef], settings: ServeSettings, size: ReplicaSettings) -> serve.Application:
    """The Ray Serve application over these tables.

    Args:
        tables: name in requests → table; a local table must have the same path on every node.
        settings: how each replica runs.
        size: number and resources of the replicas.
    """
    common: dict[str, Any] = {
        "logging_config": _LOGGING,
        "graceful_shutdown_wait_loop_s": _END_WAIT_S,
        "graceful_shutdown_timeout_s": _END_LIMIT_S,
    }
    store: serve.Deployment = serve.deployment(
        name="Pictures",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=_MOST_CALLS,
        **common,
    )(Pictures)
    app: serve.Deployment = serve.deployment(
        name="App",
        num_replicas=size.replicas,
        ray_actor_options={"num_cpus": size.cpus},
        max_ongoing_requests=_MOST_ONGOING,
        max_queued_requests=_MOST_QUEUED,
        max_constructor_retry_count=_MOST_STARTS,
        **common,
    )(serve.ingress()(App))
    return app.bind(dict(tables), settings, store.bind())
