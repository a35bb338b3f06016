"""The app as a Ray Serve application: replicas that each hold the whole app, and one small store between them.

A replica is the very app of one process, with its own threads, opened tables and encoders. What users bring must be
found whichever replica they reach next, and so lies in a deployment of its own, of one replica and bounded memory.
Serve keeps what deployments are made of, the token among it, pickled in Ray's own store; it logs none of it, and shows
none in its dashboard, as it would show environment variables.
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

# As many as have threads to wait in; so many more wait before Serve says 503.
_MOST_ONGOING, _MOST_QUEUED = 64, 200
_MOST_CALLS = 1_000
_MOST_STARTS = 3
_STORE_PATIENCE_S = 10.0
_NEAR, _NEAR_BYTES = 100, 16 * 1024 * 1024
_END_WAIT_S, _END_LIMIT_S = 0.5, 10.0
# A line a request would say what people search for.
_LOGGING = LoggingConfig(log_level="WARNING", enable_access_log=False)


@dataclass(frozen=True, kw_only=True)
class ReplicaSettings:
    """How many replicas there are, and what each may use.

    Attributes:
        replicas: of the app.
        cpus: cores that each one reserves; its threads of torch are as many, at least one.
    """

    replicas: int = 1
    cpus: float = 1.0


class SharedPictures:
    """The store between the replicas, as one of them sees it; what it has seen it holds near."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle
        self._near = HeldPictures(_NEAR, _NEAR_BYTES)

    def put(self, digest: str, small: bytes) -> None:
        """Hold a picture, for all replicas.

        Raises:
            ConnectionError: the store does not answer, and no other has taken its place.
        """
        self._call("put", digest, small)
        self._near.put(digest, small)

    def get(self, digest: str) -> bytes:
        """The picture, as a JPEG.

        Raises:
            KeyError: it is not held, or not any more.
            ConnectionError: the store does not answer, and no other has taken its place.
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
        """A call of the store, done again as long as a new one may come for one that died."""
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
        """Hold a picture."""
        self._held.put(digest, small)

    def get(self, digest: str) -> bytes | None:
        """The picture, None if it is not held: an error would come back as one of Ray's."""
        try:
            return self._held.get(digest)
        except KeyError:
            return None


class App:
    """A replica of the app."""

    def __init__(self, tables: Mapping[str, TableRef], settings: ServeSettings, pictures: DeploymentHandle) -> None:
        self._made = create_app(tables, settings, SharedPictures(pictures))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The app, whose middleware stands before every path."""
        return self._made

    def check_health(self) -> None:
        """Serve asks this now and then, and replaces a replica that fails it.

        Raises:
            RuntimeError: nothing is answered any more.
        """
        if self._made.state.steps.is_stuck():
            raise RuntimeError("no request has ended for several time limits")


def application(tables: Mapping[str, TableRef], settings: ServeSettings, size: ReplicaSettings) -> serve.Application:
    """The Ray Serve application over these tables.

    Args:
        tables: by the names that requests call them; local ones must lie on every node under the same path.
        settings: how each replica is run.
        size: of how many, and how large.
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
