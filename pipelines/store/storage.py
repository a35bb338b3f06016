"""Local paths and `s3://` URIs behind one small object. Credentials never appear in a repr.

Options have the names that Lance's object store uses: `aws_access_key_id`, `aws_secret_access_key`,
`aws_session_token`, `aws_region`, `aws_endpoint`, `allow_http`. Missing options are read from the AWS environment
variables of the process that creates the object (the driver), so workers need no AWS variables. `connect_timeout` and
`request_timeout` (`"30s"`) bound each single request, to the corpus and to the table.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_FROM_ENVIRONMENT = {
    "aws_access_key_id": ("AWS_ACCESS_KEY_ID",),
    "aws_secret_access_key": ("AWS_SECRET_ACCESS_KEY",),
    "aws_session_token": ("AWS_SESSION_TOKEN",),
    "aws_region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "aws_endpoint": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "allow_http": ("AWS_ALLOW_HTTP",),
    "connect_timeout": (),
    "request_timeout": (),
}
# Timeouts of a single request. Lance must send a large part within one `request_timeout`. The clients retry only a few
# times, because Lance retries on top of its client and `pipelines.store.retries` repeats whole steps.
_TIMEOUTS = {"connect_timeout": "10s", "request_timeout": "60s"}
_LANCE_RETRIES = {"client_max_retries": "4", "client_retry_timeout": "120"}
_S3FS_ATTEMPTS = 3
_SECRETS = ("aws_secret_access_key", "aws_session_token")


def is_remote(uri: str) -> bool:
    """True for `s3://…`, False for a local path."""
    return uri.startswith("s3://")


def absolute(uri: str) -> str:
    """The absolute form of a local path (`~` expanded). A remote URI is kept, without trailing slashes.

    Raises:
        ValueError: the URI has a scheme other than `s3://`.
    """
    if is_remote(uri):
        return uri.rstrip("/")
    if "://" in uri:
        scheme = uri.split("://", 1)[0]
        raise ValueError(f"{uri!r}: scheme {scheme!r} is not supported; give a local path or s3://bucket/…")
    return str(Path(os.path.abspath(Path(uri).expanduser())))  # noqa: PTH100  (resolve() would follow links)


def relocated(uri: str, moves: Sequence[tuple[str, str]]) -> str:
    """Where a file is now.

    Args:
        uri: where it was when it was recorded.
        moves: folders, and where their files are now; the longest folders first.

    >>> relocated("/old/a.jpg", [("/old", "/new")])
    '/new/a.jpg'
    """
    for folder, now in moves:
        if uri == folder or uri.startswith(folder.rstrip("/") + "/"):
            return now + uri[len(folder) :]
    return uri


@dataclass(frozen=True)
class Storage:
    """How to reach a store. Equality and hash depend on the options alone; safe to print and to pickle.

    Attributes:
        options: names and values of the store's options.
        moves: folders that a table's rows name, and where their files are now; the longest folders first.
    """

    options: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    moves: tuple[tuple[str, str], ...] = field(default=(), repr=False, compare=False)

    @classmethod
    def from_options(cls, options: dict[str, str] | None = None) -> Storage:
        """Options from the environment, overridden by the given ones.

        Args:
            options: option name (any case) → value; None takes everything from the environment.

        Raises:
            ValueError: an option is unknown, or a timeout is not a positive number of seconds.
        """
        merged = {
            name: next((os.environ[v] for v in variables if os.environ.get(v)), None)
            for name, variables in _FROM_ENVIRONMENT.items()
        }
        for name, value in (options or {}).items():
            if name.lower() not in _FROM_ENVIRONMENT:
                known = ", ".join(_FROM_ENVIRONMENT)
                raise ValueError(f"storage option {name!r}: unknown; choose from {known}")
            merged[name.lower()] = value
        for name in _TIMEOUTS:
            _seconds(name, merged[name] or _TIMEOUTS[name])
        return cls(tuple(sorted((name, value) for name, value in merged.items() if value)))

    def with_moves(self, moves: tuple[tuple[str, str], ...]) -> Storage:
        """The same store, for the pictures of a table whose corpora may have moved; see `moves`."""
        return replace(self, moves=moves)

    def locate(self, uri: str) -> str:
        """Where a picture is now that a row names; see `moves`."""
        return relocated(uri, self.moves)

    def lance_options(self, uri: str) -> dict[str, str] | None:
        """`storage_options` for Lance and LanceDB; None for a local path."""
        if not is_remote(uri):
            return None
        options = dict(self.options)
        if options.get("aws_endpoint", "").startswith("http://"):
            options.setdefault("allow_http", "true")
        options.setdefault("aws_region", "us-east-1")
        return {**_TIMEOUTS, **_LANCE_RETRIES, **options}

    def redact(self, text: str) -> str:
        """The text with this store's secrets masked. Servers quote requests, headers included, in their errors."""
        for name, value in self.options:
            if name in _SECRETS:
                text = text.replace(value, "***")
        return text

    def filesystem(self, uri: str) -> AbstractFileSystem:
        """The fsspec file system that holds `uri`.

        Raises:
            ModuleNotFoundError: `uri` is on S3 and s3fs is not installed.
        """
        import fsspec

        if not is_remote(uri):
            return fsspec.filesystem("file")
        options = dict(self.options)
        client: dict[str, Any] = {}
        if region := options.get("aws_region"):
            client["region_name"] = region
        try:
            return fsspec.filesystem(
                "s3",
                key=options.get("aws_access_key_id"),
                secret=options.get("aws_secret_access_key"),
                token=options.get("aws_session_token"),
                endpoint_url=options.get("aws_endpoint"),
                client_kwargs=client,
                config_kwargs={
                    "retries": {"max_attempts": _S3FS_ATTEMPTS, "mode": "standard"},
                    "connect_timeout": _seconds("connect_timeout", options.get("connect_timeout")),
                    "read_timeout": _seconds("request_timeout", options.get("request_timeout")),
                },
                default_fill_cache=False,
                use_listings_cache=False,
            )
        except ImportError as error:
            raise ModuleNotFoundError(f"{uri}: reading s3:// needs s3fs; install isthmus[s3]") from error


def _seconds(name: str, value: str | None) -> float:
    """A timeout such as `30s` or `1.5s`, in seconds. None gives the option's default.

    Raises:
        ValueError: the value is not a positive number of seconds; names the option and the value.
    """
    text = (value or _TIMEOUTS[name]).strip().removesuffix("s")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"storage option {name} {value!r}: give a number of seconds above 0, such as 30s")
    return seconds


@dataclass(frozen=True, kw_only=True)
class TableRef:
    """A table by its URI: `path/to/db/name` or `s3://bucket/db/name`. The folder is a LanceDB database.

    Attributes:
        database: the folder that holds the table: an absolute path or an `s3://` URI.
        name: the table's name in the database, without `.lance`.
        storage: how to reach the store.
        version: a version number or a tag, to read the table as it was then; None is the latest version.
    """

    database: str
    name: str
    storage: Storage
    version: str | None = None

    @classmethod
    def parse(cls, uri: str, storage: Storage | None = None, *, versions: bool = False) -> TableRef:
        """A reference from `database/name`. A trailing `.lance` is allowed.

        Args:
            uri: the URI as the user wrote it.
            storage: how to reach the store; None reads the options from the environment.
            versions: accept `database/name@version`, for commands that only read.

        Raises:
            ValueError: the name is missing or holds characters that LanceDB does not accept, or nothing follows the
                `@`.
        """
        database, _, name = absolute(uri).removesuffix(".lance").rpartition("/")
        version: str | None = None
        if versions and "@" in name:
            name, _, version = name.partition("@")
            if not version:
                raise ValueError(f"table {uri!r}: give a version or a tag after '@'")
        if not database or database in ("s3:", "s3:/") or not name:
            raise ValueError(f"table {uri!r}: give FOLDER/NAME or s3://BUCKET/FOLDER/NAME")
        if not all(c.isalnum() or c in "_-." for c in name):
            raise ValueError(f"table {uri!r}: the name {name!r} may hold letters, digits, '_', '-' and '.'")
        return cls(database=database, name=name, storage=storage or Storage.from_options(), version=version)

    @property
    def uri(self) -> str:
        """The URI of the table's Lance dataset."""
        return f"{self.database}/{self.name}.lance"

    @property
    def options(self) -> dict[str, str] | None:
        """`storage_options` for Lance; None for a local path."""
        return self.storage.lance_options(self.database)

    def sibling(self, suffix: str) -> TableRef:
        """The table `<name>_<suffix>` in the same database, such as the rejects or the ledger."""
        return TableRef(database=self.database, name=f"{self.name}_{suffix}", storage=self.storage)

    @property
    def label(self) -> str:
        """The name within the database, with the requested version if there is one: `name` or `name@version`."""
        return self.name if self.version is None else f"{self.name}@{self.version}"

    def __str__(self) -> str:
        return f"{self.database}/{self.label}"
