"""Opens and creates Lance datasets. Errors name the table and the remedy."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, overload

import pyarrow as pa

from pipelines.store.retries import CONTACT, has_ended, is_of_the_store, retry
from pipelines.store.storage import TableRef, is_remote

if TYPE_CHECKING:
    import lance


@overload
def open_dataset(ref: TableRef, *, missing_ok: Literal[False] = False) -> lance.LanceDataset: ...
@overload
def open_dataset(ref: TableRef, *, missing_ok: bool) -> lance.LanceDataset | None: ...
def open_dataset(ref: TableRef, *, missing_ok: bool = False) -> lance.LanceDataset | None:
    """The latest version of a table's dataset, or the version that `ref` names.

    Raises:
        FileNotFoundError: there is no such table (unless `missing_ok`) or version; lists those that exist.
        PermissionError: the store refuses the credentials.
        OSError: the store cannot be read.
    """
    try:
        found = retry(lambda: _open(ref), ref.uri, CONTACT)
    except (ValueError, OSError) as error:
        raise translate(error, ref.uri) from error
    if found is not None and ref.version is not None:
        return open_at(ref, int(ref.version) if ref.version.isdecimal() else ref.version)
    if found is not None or missing_ok:
        return found
    there = ", ".join(list_tables(ref)) or "none"
    raise FileNotFoundError(f"table {ref}: not found; tables in {ref.database}: {there}")


def _open(ref: TableRef) -> lance.LanceDataset | None:
    """The dataset; None if there is none.

    Raises:
        FileNotFoundError: the store lists a version of the dataset but does not (yet) serve it.
    """
    import lance

    try:
        return lance.dataset(ref.uri, storage_options=ref.options)
    except (ValueError, OSError) as error:
        if not _is_missing(error):
            raise
    # A store may report an existing table as missing, and the table would then be created anew. So the listing is
    # checked too.
    if is_remote(ref.uri) and ref.storage.filesystem(ref.uri).find(f"{ref.uri}/_versions"):
        raise FileNotFoundError(f"{ref.uri}: the store lists this table but does not serve it; try again later")
    return None


def open_at(
    ref: TableRef,
    version: int | str | None,
    *,
    index_cache_bytes: int | None = None,
    metadata_cache_bytes: int | None = None,
) -> lance.LanceDataset:
    """A table pinned at a version or a tag. Every task of a job opens it this way, so that all tasks see the same rows.

    Args:
        ref: the table.
        version: a version number or a tag; None is the latest version.
        index_cache_bytes: memory for pages of the table's indexes; None is Lance's default, which is gigabytes.
        metadata_cache_bytes: memory for metadata of the table's fragments; None is Lance's default.

    Raises:
        FileNotFoundError: there is no such table, version or tag; lists those that are kept.
        OSError: the store cannot be read.
    """
    import lance

    if version is None:
        return open_dataset(ref)

    def pinned() -> lance.LanceDataset:
        return lance.dataset(
            ref.uri,
            version=version,
            storage_options=ref.options,
            index_cache_size_bytes=index_cache_bytes,
            metadata_cache_size_bytes=metadata_cache_bytes,
        )

    try:
        return retry(pinned, ref.uri)
    except (ValueError, OSError) as error:
        if is_of_the_store(error):
            raise translate(error, ref.uri) from error
        latest = open_dataset(replace(ref, version=None))
    kept = [entry["version"] for entry in latest.version_refs()]
    tags = ", ".join(sorted(latest.tags.list())) or "none"
    what = "version" if isinstance(version, int) else "version or tag"
    raise FileNotFoundError(
        f"table {ref}: has no {what} {version!r}; kept are {len(kept)} from {min(kept)} to {max(kept)}; tags: {tags}"
    )


def list_tables(ref: TableRef) -> list[str]:
    """Names of the tables in the database of `ref`, sorted; empty if the folder does not exist."""
    files = ref.storage.filesystem(ref.database)
    try:
        names = [entry.rstrip("/").rsplit("/", 1)[-1] for entry in files.ls(ref.database, detail=False)]
    except OSError:
        return []
    return sorted(name.removesuffix(".lance") for name in names if name.endswith(".lance"))


def create_dataset(ref: TableRef, schema: pa.Schema) -> lance.LanceDataset:
    """A new empty dataset of `schema`, or the existing one if another process created it first."""
    import lance

    def create() -> lance.LanceDataset:
        return lance.write_dataset(
            schema.empty_table(), ref.uri, schema=schema, mode="create", storage_options=ref.options
        )

    try:
        return retry(create, ref.uri)
    except OSError as error:
        if "already exists" in str(error).lower():
            return open_dataset(ref)
        raise translate(error, ref.uri) from error


def append_rows(ref: TableRef, rows: pa.Table, *, overwrite: bool = False) -> None:
    """Append rows to a dataset, creating it if necessary. With `overwrite`, the rows replace its content."""
    import lance

    if open_dataset(ref, missing_ok=True) is None:
        create_dataset(ref, rows.schema)
    lance.write_dataset(rows, ref.uri, mode="overwrite" if overwrite else "append", storage_options=ref.options)


def translate(error: Exception, uri: str) -> Exception:
    """A store's error as one line with a remedy; the original error if it is not one of the known kinds."""
    if has_ended(error):
        return error
    text = str(error)
    lower = text.lower()
    if any(word in lower for word in ("accessdenied", "forbidden", "invalidaccesskey", "signaturedoesnotmatch", "403")):
        return PermissionError(f"{uri}: the store refuses these credentials; check AWS_ACCESS_KEY_ID and its rights")
    if "nosuchbucket" in lower or ("bucket" in lower and "not" in lower and "exist" in lower):
        return FileNotFoundError(f"{uri}: the bucket does not exist")
    if "no space left" in lower or "disk quota" in lower or "os error 28" in lower:
        return OSError(
            f"{uri}: no space left on the device; the table is as of its last commit: free space and run again"
        )
    if is_remote(uri) and any(word in lower for word in ("connect", "dns", "timed out", "error sending request")):
        return ConnectionError(f"{uri}: the store cannot be reached; check AWS_ENDPOINT_URL and the network")
    return error


def is_conflict(error: Exception) -> bool:
    """Whether a commit failed because another one came first. Such a commit may be retried on the newer version."""
    from lance.commit import CommitConflictError

    return isinstance(error, CommitConflictError) or "incompatible transaction" in str(error).lower()


def _is_missing(error: Exception) -> bool:
    if is_of_the_store(error):
        return False
    text = str(error).lower()
    return "was not found" in text or ("not found" in text and "bucket" not in text)
