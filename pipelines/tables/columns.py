"""Columns that are added to a table or rewritten: one commit, on the very version that they were made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.store.storage import TableRef
from pipelines.tables.opening import is_conflict

if TYPE_CHECKING:
    import lance
    from lance.fragment import FragmentMetadata
    from lance.schema import LanceSchema

# A fragment with new values, and the fields that they are of.
Rewritten = tuple["FragmentMetadata", list[int]]


class TableMovedError(RuntimeError):
    """Another job changed the table between the look at it and the commit."""


def add_columns(
    table: TableRef, dataset: lance.LanceDataset, fragments: Sequence[FragmentMetadata], schema: LanceSchema
) -> None:
    """Land fragments that have further columns.

    Args:
        table: the table.
        dataset: the version that the fragments are of.
        fragments: all of that version's, as `merge_columns` gave them.
        schema: with the new columns.

    Raises:
        TableMovedError: the table changed meanwhile. Nothing was written.
        OSError: the store fails.
    """
    import lance

    _commit(table, dataset, lance.LanceOperation.Merge(fragments, schema))


def rewrite_columns(table: TableRef, dataset: lance.LanceDataset, rewritten: Sequence[Rewritten]) -> None:
    """Land new values of columns that are there; their indexes lose the fragments, and take them in when refreshed.

    Args:
        table: the table.
        dataset: the version that the fragments are of.
        rewritten: the fragments that changed, as `update_columns` gave them.

    Raises:
        TableMovedError: the table changed meanwhile. Nothing was written.
        OSError: the store fails.
    """
    import lance

    operation = lance.LanceOperation.Update(
        updated_fragments=[fragment for fragment, _ in rewritten],
        fields_modified=sorted({field for _, fields in rewritten for field in fields}),
        update_mode="rewrite_columns",
    )
    _commit(table, dataset, operation)


def _commit(table: TableRef, dataset: lance.LanceDataset, operation: lance.LanceOperation.BaseOperation) -> None:
    import lance

    transaction = lance.Transaction(read_version=dataset.version, operation=operation)
    try:
        lance.LanceDataset.commit(table.uri, transaction, storage_options=table.options, max_retries=0)
    except OSError as error:
        if is_conflict(error):
            raise TableMovedError(f"table {table}: changed meanwhile; nothing was written, run again") from error
        raise
