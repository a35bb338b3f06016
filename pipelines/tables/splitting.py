"""Splits a table's rows into training and validation: filtered by SQL, divided by a hash of a column."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.rows.contract import CAPTION, ITEM_ID
from pipelines.tables.filters import check_filter

if TYPE_CHECKING:
    import lance

OFFSET = "_rowoffset"


@dataclass(frozen=True, kw_only=True)
class Split:
    """How rows are divided.

    Attributes:
        where: SQL filter of the rows to use; None uses all rows.
        validation_where: SQL filter of the validation rows among them; None splits by hash.
        fraction: share of the groups that go to validation in a split by hash, from 0 to below 1.
        group: column whose equal values stay on the same side.
    """

    where: str | None = None
    validation_where: str | None = None
    fraction: float = 0.1
    group: str = ITEM_ID


@dataclass(frozen=True, kw_only=True)
class Selected:
    """The two sides of a split.

    Attributes:
        train: (n,) int64, offsets of the training rows, ascending.
        validation: (m,) int64, offsets of the validation rows, ascending.
    """

    train: NDArray[np.int64]
    validation: NDArray[np.int64]


def select(dataset: lance.LanceDataset, split: Split, needed: tuple[str, ...] = ()) -> Selected:
    """Divide the rows of a table.

    Args:
        dataset: the table, pinned at a version.
        split: how to divide its rows.
        needed: further columns that must not be null. The caption never may be.

    Raises:
        ValueError: a filter is invalid, a column is missing, the fraction is out of range, or no row has all needed
            columns.
    """
    if not 0 <= split.fraction < 1:
        raise ValueError(f"validation_fraction {split.fraction}: give a number from 0 to below 1")
    if split.group not in dataset.schema.names:
        raise ValueError(f"group {split.group!r}: no such column; columns are {', '.join(dataset.schema.names)}")
    columns = tuple(dict.fromkeys((CAPTION, *needed)))
    conditions = [f"{name} IS NOT NULL" for name in columns]
    for where in (split.where, split.validation_where):
        if where is not None:
            check_filter(where, dataset)
    conditions += [f"({split.where})"] if split.where else []
    used = " AND ".join(conditions)
    if not dataset.count_rows(used):
        rows = dataset.count_rows(split.where)
        if split.where and not rows:
            raise ValueError(f"where {split.where!r}: no row of the table matches; change the filter")
        raise ValueError(f"none of the {rows} rows has all the columns that training needs: {', '.join(columns)}")
    if split.validation_where is not None:
        train = _offsets(dataset, f"{used} AND NOT coalesce(({split.validation_where}), false)")
        return Selected(train=train, validation=_offsets(dataset, f"{used} AND ({split.validation_where})"))
    return _by_hash(dataset, used, split)


def _offsets(dataset: lance.LanceDataset, where: str) -> NDArray[np.int64]:
    table = dataset.scanner(columns=[OFFSET], filter=where).to_table()
    return np.sort(table[OFFSET].to_numpy().astype(np.int64))


def _by_hash(dataset: lance.LanceDataset, where: str, split: Split) -> Selected:
    train, validation = [], []
    for batch in dataset.scanner(columns=[split.group, OFFSET], filter=where).to_batches():
        held_out = in_validation(batch[split.group], split.fraction)
        offsets = batch[OFFSET].to_numpy(zero_copy_only=False).astype(np.int64)
        train.append(offsets[~held_out])
        validation.append(offsets[held_out])
    none = [np.zeros(0, np.int64)]
    return Selected(
        train=np.sort(np.concatenate(train or none)), validation=np.sort(np.concatenate(validation or none))
    )


def in_validation(values: pa.Array, fraction: float) -> NDArray[np.bool_]:
    """Whether each value's hash falls into the validation share; the same on every machine and in every run.

    Args:
        values: (n,) values of the group column.
        fraction: the validation share.

    Returns:
        (n,) bool. Null values are never in validation.
    """
    encoded = (
        values.dictionary_encode() if isinstance(values, pa.Array) else values.combine_chunks().dictionary_encode()
    )
    chosen = np.array([_share(str(value)) < fraction for value in encoded.dictionary.to_pylist()] + [False], np.bool_)
    codes = encoded.indices.fill_null(len(chosen) - 1).to_numpy(zero_copy_only=False)
    return np.asarray(chosen[codes], np.bool_)


def _share(value: str) -> float:
    return int.from_bytes(hashlib.blake2b(value.encode(), digest_size=8).digest(), "big") / 2.0**64
