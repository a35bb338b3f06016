"""Opening and creating Lance datasets with errors that name the table and the remedy."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, overload

import pyarrow as pa

from pipelines.rows.contract import PICTURE, TEXT
from pipelines.store.retries import CONTACT, has_ended, is_of_the_store, retry
from pipelines.store.storage import TableRef, is_remote
from pipelines.tables.provenance import Provenance

if TYPE_CHECKING:
    import lance

# Columns without which a table is as good, only slower to bring up to date: older tables lack them.
OPTIONAL = frozenset({PICTURE, TEXT})


@overload
def open_dataset(ref: TableRef, *, missing_ok: Literal[False] = False) -> lance.LanceDataset: ...
@overload
def open_dataset(ref: TableRef, *, missing_ok: bool) -> lance.LanceDataset | None: ...
def open_dataset(ref: TableRef, *, missing_ok: bool = False) -> lance.LanceDataset | None:
    """The latest version of a table's dataset, or the one that `ref` names.

    Raises:
        FileNotFoundError: there is no such table (unless `missing_ok`) or version; lists those that are there.
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
    """The dataset, None where there is none.

    Raises:
        FileNotFoundError: the store lists a version of it and does not give it (yet).
    """
    import lance

    try:
        return lance.dataset(ref.uri, storage_options=ref.options)
    except (ValueError, OSError) as error:
        if not _is_missing(error):
            raise
    # Taken for absent, a table that is there would be made anew: a store's word is not enough.
    if is_remote(ref.uri) and ref.storage.filesystem(ref.uri).find(f"{ref.uri}/_versions"):
        raise FileNotFoundError(f"{ref.uri}: the store lists this table and does not give it; try again later")
    return None


def open_at(
    ref: TableRef,
    version: int | str | None,
    *,
    index_cache_bytes: int | None = None,
    metadata_cache_bytes: int | None = None,
) -> lance.LanceDataset:
    """A table pinned at a version or a tag: what every task of a job opens, so that all of them see the same rows.

    Args:
        ref: the table.
        version: a version number or a tag; None is the latest.
        index_cache_bytes: memory for the pages of its indexes; None is Lance's default, which is gigabytes.
        metadata_cache_bytes: memory for its fragments' metadata; None is Lance's default.

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
    """Names of the tables in the database of `ref`; empty where the folder is not there."""
    files = ref.storage.filesystem(ref.database)
    try:
        names = [entry.rstrip("/").rsplit("/", 1)[-1] for entry in files.ls(ref.database, detail=False)]
    except OSError:
        return []
    return sorted(name.removesuffix(".lance") for name in names if name.endswith(".lance"))


def create_dataset(ref: TableRef, schema: pa.Schema) -> lance.LanceDataset:
    """An empty dataset of `schema`; the one that is there if another process was faster."""
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
    """Append rows to a dataset, or put them in place of all that it holds; makes it if it is not there."""
    import lance

    if open_dataset(ref, missing_ok=True) is None:
        create_dataset(ref, rows.schema)
    lance.write_dataset(rows, ref.uri, mode="overwrite" if overwrite else "append", storage_options=ref.options)


def check_schema(existing: pa.Schema, wanted: pa.Schema, table: TableRef) -> None:
    """Refuse rows that do not fit a table that is there already.

    Raises:
        EncoderMismatchError: the table's vectors are another encoder's.
        ValueError: a column is new, or of another type.
    """
    there, new = Provenance.from_schema(existing, str(table)), Provenance.from_schema(wanted)
    there.check_same_encoder(new.encoder, str(table))
    for column in wanted:
        if existing.get_field_index(column.name) < 0:
            if column.name in OPTIONAL:
                continue
            raise ValueError(
                f"table {table}: has no column {column.name!r} ({column.type}) of this corpus; "
                "embed into a new table, or drop the column from the corpus"
            )
        found = existing.field(column.name).type
        if found != column.type:
            raise ValueError(f"table {table}: column {column.name!r} is {found}, the corpus gives {column.type}")


def translate(error: Exception, uri: str) -> Exception:
    """A store's error as one line with a remedy; the original error where nothing better is known."""
    if has_ended(error):
        return error
    text = str(error)
    lower = text.lower()
    if any(word in lower for word in ("accessdenied", "forbidden", "invalidaccesskey", "signaturedoesnotmatch", "403")):
        return PermissionError(f"{uri}: the store refuses these credentials; check AWS_ACCESS_KEY_ID and its rights")
    if "nosuchbucket" in lower or ("bucket" in lower and "not" in lower and "exist" in lower):
        return FileNotFoundError(f"{uri}: the bucket does not exist")
    if "no space left" in lower or "disk quota" in lower or "os error 28" in lower:
        return OSError(f"{uri}: no space left on the device; the table is as of its last commit: free space, run again")
    if is_remote(uri) and any(word in lower for word in ("connect", "dns", "timed out", "error sending request")):
        return ConnectionError(f"{uri}: the store cannot be reached; check AWS_ENDPOINT_URL and the network")
    return error


def is_conflict(error: Exception) -> bool:
    """Whether a commit failed because another one came first (and may be tried on the newer version)."""
    from lance.commit import CommitConflictError

    return isinstance(error, CommitConflictError) or "incompatible transaction" in str(error).lower()


def _is_missing(error: Exception) -> bool:
    if is_of_the_store(error):
        return False
    text = str(error).lower()
    return "was not found" in text or ("not found" in text and "bucket" not in text)
