"""`isthmus serve`: serve a web page and an HTTP API over tables, from one process or from replicas on Ray Serve."""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter
from pydantic import Field, field_validator

from jobs.config import CorpusStoreConfig

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

    from pipelines.search.serving.app import ServeSettings
    from pipelines.store.storage import TableRef

_LOCAL = ("127.0.0.1", "localhost", "::1")
_TOKEN_VARIABLE = "ISTHMUS_TOKEN"


@Parameter(name="*")
class ServeConfig(CorpusStoreConfig):
    """Config of `isthmus serve`."""

    tables: list[str] = Field(
        min_length=1,
        description="Tables to serve: FOLDER/NAME or s3://BUCKET/FOLDER/NAME, "
        "optionally with @VERSION or @TAG. Give several to compare them.",
    )
    host: str = Field(
        default="127.0.0.1",
        description="Address to listen on. Any other than this machine's own needs a token in ISTHMUS_TOKEN.",
    )
    port: int = Field(default=8765, ge=0, le=65_535, description="Port to listen on; 0: any free port.")
    allowed_host: list[str] = Field(
        default_factory=list, description="Host name by which browsers reach the server; repeat it for several."
    )
    pictures: list[str] = Field(
        default_factory=list,
        description="Folder, besides the corpora, whose pictures may be shown; repeat it for several.",
    )
    time_limit_s: float = Field(
        default=30.0, gt=0, description="Seconds after which a request is answered with an error."
    )
    replicas: int | None = Field(
        default=None, ge=1, description="Number of replicas on Ray Serve; default: serve from one process, without Ray."
    )
    cpus_per_replica: float = Field(default=1.0, gt=0, description="CPU cores that each replica reserves on Ray.")

    @field_validator("tables")
    @classmethod
    def _no_two_alike(cls, tables: list[str]) -> list[str]:
        if len(set(tables)) < len(tables):
            raise ValueError(f"names a table twice: {', '.join(tables)}; name each table once")
        return tables


@dataclass(frozen=True, kw_only=True)
class ServeReport:
    """The tables that were served, and the address."""

    tables: list[str]
    address: str

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return asdict(self)


def make_app(config: ServeConfig) -> FastAPI:
    """The app, for any ASGI server. If the environment variable ISTHMUS_TOKEN is set, requests must carry it as token.

    Raises:
        FileNotFoundError: a table does not exist.
        ValueError: isthmus did not make a table, or the server would be open to others without a token.
    """
    from pipelines.search.serving.app import create_app

    return create_app(_tables(config), _settings(config, is_local=config.host in _LOCAL))


def ray_application(args: dict[str, Any]) -> Application:
    """The app for `serve run`, `serve deploy` and KubeRay's RayService, which choose their own address and port.

    Args:
        args: fields of `ServeConfig` other than host and port; `tables` may be one string with commas.

    Raises:
        ValueError: an argument is invalid, or ISTHMUS_TOKEN is not set although a cluster's proxies are open to others.
    """
    tables = args.get("tables")
    config = ServeConfig.model_validate(args | {"tables": tables.split(",") if isinstance(tables, str) else tables})
    return _application(config, is_local=False)


def _application(config: ServeConfig, *, is_local: bool) -> Application:
    from pipelines.search.serving.replicas import ReplicaSettings, application

    size = ReplicaSettings(replicas=config.replicas or 1, cpus=config.cpus_per_replica)
    return application(_tables(config), _settings(config, is_local=is_local), size)


def _settings(config: ServeConfig, *, is_local: bool) -> ServeSettings:
    from pipelines.search.serving.app import ServeSettings
    from pipelines.store.storage import absolute

    token = os.environ.get(_TOKEN_VARIABLE) or None
    if not is_local and token is None:
        where = f"host {config.host!r}" if config.host not in _LOCAL else "a cluster's proxy"
        raise ValueError(
            f"{where}: others could search these tables; set {_TOKEN_VARIABLE} to a secret, or listen on 127.0.0.1"
        )
    hosts = ("localhost", "127.0.0.1", "[::1]", *config.allowed_host)
    return ServeSettings(
        token=token,
        hosts=hosts if is_local or config.allowed_host else ("*",),
        time_limit_s=config.time_limit_s,
        picture_roots=tuple(absolute(folder) for folder in config.pictures),
        corpus_storage=config.corpus_storage(),
    )


def _tables(config: ServeConfig) -> dict[str, TableRef]:
    """The tables by name: a short name if it is unique, else the full URI."""
    from pipelines.store.storage import TableRef

    storage = config.storage()
    refs = [TableRef.parse(name, storage, versions=True) for name in config.tables]
    names = [ref.label for ref in refs]
    return {ref.label if names.count(ref.label) == 1 else str(ref): ref for ref in refs}


def run(config: ServeConfig) -> ServeReport:
    """Serve until interrupted.

    Raises:
        FileNotFoundError: a table does not exist.
        ModuleNotFoundError: the extra `serve`, or for replicas `serve-ray`, is not installed.
        ValueError: isthmus did not make a table, or the server would be open to others without a token.
        OSError: the port is taken.
        RuntimeError: the cluster's Ray Serve has another configuration, or a replica cannot start.
    """
    return _run_alone(config) if config.replicas is None else _run_replicas(config)


def _run_alone(config: ServeConfig) -> ServeReport:
    import socket

    from jobs.display import say

    try:
        import uvicorn
    except ModuleNotFoundError:
        raise ModuleNotFoundError("isthmus serve needs more packages: pip install 'isthmus[serve]'") from None

    app = make_app(config)
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listening = socket.create_server((config.host, config.port), family=family, reuse_port=False)
    address = f"http://{config.host}:{listening.getsockname()[1]}/"
    say(f"serving {', '.join(config.tables)} at {address} (end with Ctrl-C)")
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_keep_alive=10, limit_concurrency=200))
    server.run(sockets=[listening])
    return ServeReport(tables=list(config.tables), address=address)


def _run_replicas(config: ServeConfig) -> ServeReport:
    from jobs.display import say

    try:
        from pipelines.search.serving.cluster import Listening, deployed, watch
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "isthmus serve --replicas needs more packages: pip install 'isthmus[serve-ray]'"
        ) from None
    from pipelines.search.retrieval.search import OpenTable

    app = _application(config, is_local=config.host in _LOCAL)
    for table in _tables(config).values():
        # A table's error is reported here in one line, not by every replica.
        OpenTable.open(table)
    at = Listening(host=config.host, port=config.port, time_limit_s=config.time_limit_s)
    with deployed(app, at, say) as address:
        say(f"serving {', '.join(config.tables)} at {address} with {config.replicas} replicas (end with Ctrl-C)")
        # Ctrl-C is the normal end, not a failure.
        with contextlib.suppress(KeyboardInterrupt):
            watch(say)
    return ServeReport(tables=list(config.tables), address=address)
