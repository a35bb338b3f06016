"""`isthmus serve`: a web page and an HTTP API over tables, by one process or by replicas on Ray Serve."""

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
        description="FOLDER/NAME or s3://BUCKET/FOLDER/NAME, each with @VERSION or @TAG; several to compare.",
    )
    host: str = Field(default="127.0.0.1", description="Where to listen; beyond this machine a token is needed.")
    port: int = Field(default=8765, ge=0, le=65_535, description="0 takes a free one.")
    allowed_host: list[str] = Field(default_factory=list, description="Names by which browsers reach the server.")
    pictures: list[str] = Field(
        default_factory=list, description="Folders besides the corpora from which pictures may be shown."
    )
    time_limit_s: float = Field(default=30.0, gt=0, description="A request that takes longer is given up.")
    replicas: int | None = Field(
        default=None, ge=1, description="Serve by Ray Serve, with so many replicas; without it, by one process."
    )
    cpus_per_replica: float = Field(default=1.0, gt=0, description="Cores that each replica reserves.")

    @field_validator("tables")
    @classmethod
    def _no_two_alike(cls, tables: list[str]) -> list[str]:
        if len(set(tables)) < len(tables):
            raise ValueError(f"names a table twice: {', '.join(tables)}")
        return tables


@dataclass(frozen=True, kw_only=True)
class ServeReport:
    """What was served, after the end."""

    tables: list[str]
    address: str

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return asdict(self)


def make_app(config: ServeConfig) -> FastAPI:
    """The app, for any ASGI server. The environment variable ISTHMUS_TOKEN is the token that requests must show.

    Raises:
        FileNotFoundError: a table is not there.
        ValueError: a table was not made by isthmus, or the server would be open to others without a token.
    """
    from pipelines.search.serving.app import create_app

    return create_app(_tables(config), _settings(config, is_local=config.host in _LOCAL))


def ray_application(args: dict[str, Any]) -> Application:
    """The app for `serve run`, `serve deploy` and KubeRay's RayService, which say where their proxies listen.

    Args:
        args: fields of `ServeConfig` other than host and port; `tables` may be one text with commas.

    Raises:
        ValueError: an argument is wrong, or ISTHMUS_TOKEN is not set: proxies of a cluster are open to others.
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
    """The tables, by short names where those tell them apart, else by whole ones."""
    from pipelines.store.storage import TableRef

    storage = config.storage()
    refs = [TableRef.parse(name, storage, versions=True) for name in config.tables]
    names = [ref.label for ref in refs]
    return {ref.label if names.count(ref.label) == 1 else str(ref): ref for ref in refs}


def run(config: ServeConfig) -> ServeReport:
    """Serve until interrupted.

    Raises:
        FileNotFoundError: a table is not there.
        ModuleNotFoundError: the extra `serve`, or for replicas `serve-ray`, is not installed.
        ValueError: as `make_app`.
        OSError: the port is taken.
        RuntimeError: the cluster's Ray Serve is set up otherwise, or a replica cannot start.
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
        # What is wrong with a table is said here in one line, rather than by each replica.
        OpenTable.open(table)
    at = Listening(host=config.host, port=config.port, time_limit_s=config.time_limit_s)
    with deployed(app, at, say) as address:
        say(f"serving {', '.join(config.tables)} at {address} by {config.replicas} replicas (end with Ctrl-C)")
        # Ctrl-C is how it ends, and no failure.
        with contextlib.suppress(KeyboardInterrupt):
            watch(say)
    return ServeReport(tables=list(config.tables), address=address)
