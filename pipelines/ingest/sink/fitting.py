"""Checks, on the version that a commit lands on, that the staged fragments fit it. Lance checks neither of these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelines.store.retries import retry
from pipelines.store.storage import TableRef

if TYPE_CHECKING:
    import lance
    from lance.fragment import FragmentMetadata


class StaleGroupError(RuntimeError):
    """Files of a staged group were cleaned up, or may have been."""


class SchemaChangedError(RuntimeError):
    """The table got a column that the staged rows cannot fill."""


def check_schema_of(dataset: lance.LanceDataset, fragments: Sequence[FragmentMetadata], table: TableRef) -> None:
    """Refuse fragments that lack a column that cannot be null. With them, no read of the table would succeed.

    A column of the table that a fragment lacks reads as null. A column that was renamed or dropped since it was staged
    needs no care: files name columns by number.

    Raises:
        SchemaChangedError: names the column and the remedy.
    """
    needed = {
        field.name(): _numbers(field)
        for field in dataset.lance_schema.fields()
        if not dataset.schema.field(field.name()).nullable
    }
    for fragment in fragments:
        there = {number for file in fragment.to_json()["files"] for number in file["fields"]}
        for name, numbers in needed.items():
            if not numbers & there:
                raise SchemaChangedError(
                    f"table {table}: column {name!r} was added while this job ran and cannot be null, but the corpus "
                    f"has no values for it. Allow nulls (in lancedb: table.alter_columns({{'path': {name!r}, "
                    "'nullable': True})) or drop the column, and run the same command again; committed rows are kept"
                )


def _numbers(field: Any) -> set[int]:
    return {field.id(), *(number for child in field.children() for number in _numbers(child))}


def check_files(fragments: Sequence[FragmentMetadata], table: TableRef) -> None:
    """Refuse fragments whose files are gone: the table could not be read with them.

    Raises:
        StaleGroupError: a cleanup removed a file while this job ran.
        OSError: the store cannot be read.
    """
    files = table.storage.filesystem(table.uri)
    for fragment in fragments:
        for file in fragment.data_files():
            uri = f"{table.uri}/data/{file.path}"
            if not retry(lambda uri=uri: files.exists(uri), uri):  # type: ignore[misc]
                raise StaleGroupError(
                    f"table {table}: a file with rows that were staged and not committed is gone ({file.path}): "
                    "a cleanup removed it while this job ran. Run the same command again: committed rows are kept, "
                    "the rest will be embedded"
                )
