"""Adds or rewrites columns of a table: one commit, valid only on the exact version that it was prepared from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.store.storage import TableRef
from pipelines.tables.opening import is_conflict

if TYPE_CHECKING:
    import lance
    from lance.fragment import FragmentMetadata
    from lance.schema import LanceSchema

# A fragment with new values, and the ids of the rewritten fields.
Rewritten = tuple["FragmentMetadata", list[int]]


class TableMovedError(RuntimeError):
    """Another job changed the table between the read and the commit."""


def add_columns(
    table: TableRef, dataset: lance.LanceDataset, fragments: Sequence[FragmentMetadata], schema: LanceSchema
) -> None:
    """Commit fragments that have additional columns.

    Args:
        table: the table.
        dataset: the version that the fragments belong to.
        fragments: all fragments of that version, as returned by `merge_columns`.
        schema: the schema with the new columns.

    Raises:
        TableMovedError: the table changed meanwhile. Nothing was committed.
        OSError: the store fails.
    """
    import lance

    _commit(table, dataset, lance.LanceOperation.Merge(fragments, schema))


def rewrite_columns(table: TableRef, dataset: lance.LanceDataset, rewritten: Sequence[Rewritten]) -> None:
    """Commit new values of existing columns. Their indexes drop these fragments until the next index refresh.

    Args:
        table: the table.
        dataset: the version that the fragments belong to.
        rewritten: the changed fragments, as returned by `update_columns`.

    Raises:
        TableMovedError: the table changed meanwhile. Nothing was committed.
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
            raise TableMovedError(
                f"table {table}: another job changed it meanwhile, so nothing was written; run again"
            ) from error
        raise
