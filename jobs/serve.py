"""`isthmus serve`: a web page and an HTTP API over tables."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter
from pydantic import Field, field_validator

from jobs.config import JobConfig

if TYPE_CHECKING:
    from fastapi import FastAPI

    from pipelines.storage import TableRef

_LOCAL = ("127.0.0.1", "localhost", "::1")
_TOKEN_VARIABLE = "ISTHMUS_TOKEN"


@Parameter(name="*")
class ServeConfig(JobConfig):
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
    storage_options: dict[str, str] = Field(default_factory=dict, repr=False, description="How to reach the store.")
    corpus_storage_options: dict[str, str] = Field(
        default_factory=dict, repr=False, description="The same for the corpus' pictures."
    )

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
    from pipelines.serving.app import ServeSettings, create_app
    from pipelines.storage import Storage, TableRef

    token = os.environ.get(_TOKEN_VARIABLE) or None
    if config.host not in _LOCAL and token is None:
        raise ValueError(
            f"host {config.host!r}: others could search these tables; set {_TOKEN_VARIABLE} to a secret, "
            "or listen on 127.0.0.1"
        )
    storage = Storage.from_options(config.storage_options)
    refs = [TableRef.parse(name, storage, versions=True) for name in config.tables]
    hosts = ("localhost", "127.0.0.1", "[::1]", *config.allowed_host)
    settings = ServeSettings(
        token=token,
        hosts=hosts if config.host in _LOCAL or config.allowed_host else ("*",),
        time_limit_s=config.time_limit_s,
        picture_roots=tuple(config.pictures),
        corpus_storage=Storage.from_options(config.corpus_storage_options),
    )
    return create_app(_by_name(refs), settings)


def _by_name(refs: list[TableRef]) -> dict[str, TableRef]:
    """Short names where they tell the tables apart, else whole ones."""
    names = [ref.label for ref in refs]
    return {ref.label if names.count(ref.label) == 1 else str(ref): ref for ref in refs}


def run(config: ServeConfig) -> ServeReport:
    """Serve until interrupted.

    Raises:
        FileNotFoundError: a table is not there.
        ModuleNotFoundError: the extra `serve` is not installed.
        ValueError: as `make_app`.
        OSError: the port is taken.
    """
    import socket

    from jobs.display import say

    try:
        import uvicorn
    except ModuleNotFoundError:
        raise ModuleNotFoundError("isthmus serve needs more packages: pip install 'isthmus[serve]'") from None

    app = make_app(config)
    listening = socket.create_server((config.host, config.port), family=_family(config.host), reuse_port=False)
    address = f"http://{config.host}:{listening.getsockname()[1]}/"
    say(f"serving {', '.join(config.tables)} at {address} (end with Ctrl-C)")
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_keep_alive=10, limit_concurrency=200))
    server.run(sockets=[listening])
    return ServeReport(tables=list(config.tables), address=address)


def _family(host: str) -> int:
    import socket

    return socket.AF_INET6 if ":" in host else socket.AF_INET
