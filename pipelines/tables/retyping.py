"""Gives a column that holds no value yet the type of the first values that come for it.

Lance casts no null column. So the typed column is added under a name of its own, the old column is dropped, and the new
one gets its name: three commits. They only change metadata unless the column holds lists or structs, whose nulls are
written anew. A job that dies in between loses nothing, since the next one goes on from the names that it finds.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa

from pipelines.rows.contract import RETYPED_PREFIX
from pipelines.rows.types import is_text
from pipelines.store.retries import retried, retry
from pipelines.store.storage import TableRef
from pipelines.tables.opening import open_dataset
from pipelines.tables.schemas import check_schema, check_storable

if TYPE_CHECKING:
    import lance


def check_table(
    table: TableRef, existing: lance.LanceDataset | None, wanted: pa.Schema, corpus: str
) -> dict[str, pa.DataType]:
    """Reject rows that do not fit a table, or that no table can store; see `check_schema` and `check_storable`.

    Args:
        table: the table, for messages.
        existing: its dataset; None if there is none yet.
        wanted: the schema that the corpus would give a new table.
        corpus: the corpus as the user named it, for messages.

    Returns:
        Column → type, for the columns that must change their type first.

    Raises:
        EncoderMismatchError: another encoder made the table's vectors.
        ValueError: names the column, its types and the remedy.
    """
    if existing is None:
        check_storable(wanted, corpus)
        return {}
    return check_schema(existing.schema, wanted, table, corpus, partial(_is_empty, existing))


def settled_types(existing: lance.LanceDataset, guessed: pa.Schema) -> pa.Schema:
    """The table's columns, without text columns that hold no value: their type may still become that of the corpus.

    Args:
        existing: the table.
        guessed: the pass-through fields of the corpus.
    """
    others = {f.name for f in guessed if not is_text(f.type) and not pa.types.is_null(f.type)}
    return pa.schema(
        f for f in existing.schema if not (f.name in others and is_text(f.type) and _is_empty(existing, f.name))
    )


def fit_table(table: TableRef, wanted: pa.Schema, corpus: str) -> lance.LanceDataset:
    """Give the table's columns the types that rows of a corpus need. The caller holds the table's lease.

    Returns:
        The table's latest version.

    Raises:
        EncoderMismatchError: another encoder made the table's vectors.
        ValueError: the rows do not fit; nothing was changed.
        OSError: the store fails.
    """
    dataset = open_dataset(table)
    changes = check_table(table, dataset, wanted, corpus)
    _end_earlier(dataset)
    for column, kind in changes.items():
        retry(partial(_retype, table, column, kind), table.uri)
    return open_dataset(table)


@retried
def _is_empty(dataset: lance.LanceDataset, column: str) -> bool:
    held = column if column in dataset.schema.names else RETYPED_PREFIX + column
    return dataset.count_rows(f"`{held}` IS NOT NULL") == 0


def _retype(table: TableRef, column: str, kind: pa.DataType) -> None:
    """Safe to repeat: it starts from the columns that are there."""
    dataset = open_dataset(table)
    _end_earlier(dataset)
    found = dataset.schema.field(column).type
    if found == kind:
        return
    _add(dataset, column, kind, all_null=pa.types.is_null(found) or _is_empty(dataset, column))
    dataset.drop_columns([column])
    _end_earlier(dataset)


def _add(dataset: lance.LanceDataset, column: str, kind: pa.DataType, *, all_null: bool) -> None:
    """Add the column in its new type, under its name of the meantime."""
    import lance

    schema = pa.schema([pa.field(RETYPED_PREFIX + column, kind)])
    if all_null:
        dataset.add_columns(schema)
        return

    def cast(batch: pa.RecordBatch) -> pa.RecordBatch:
        return pa.RecordBatch.from_arrays([batch.column(column).cast(kind)], schema=schema)

    dataset.add_columns(lance.batch_udf(output_schema=schema)(cast), read_columns=[column])


def _end_earlier(dataset: lance.LanceDataset) -> None:
    """End what a job that died has begun: name the column that it added, or drop it if the old one is still there."""
    names = dataset.schema.names
    for aside in [name for name in names if name.startswith(RETYPED_PREFIX)]:
        column = aside.removeprefix(RETYPED_PREFIX)
        if column in names:
            dataset.drop_columns([aside])
        else:
            dataset.alter_columns({"path": aside, "name": column})  # type: ignore[dict-item]
