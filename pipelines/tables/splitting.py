"""Which rows of a table train and which validate: filtered by SQL, split by a hash of a column."""

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
        where: SQL filter of the rows that are used at all.
        validation_where: SQL filter of those among them that validate; None splits by hash.
        fraction: share of the groups that validate, where there is no such filter.
        group: column whose equal values stay on one side.
    """

    where: str | None = None
    validation_where: str | None = None
    fraction: float = 0.1
    group: str = ITEM_ID


@dataclass(frozen=True, kw_only=True)
class Selected:
    """Offsets of rows in a table, int64, ascending."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]


def select(dataset: lance.LanceDataset, split: Split, needed: tuple[str, ...] = ()) -> Selected:
    """Divide the rows of a table.

    Args:
        dataset: the table at its version.
        split: how.
        needed: columns that must not be null (the caption never may).

    Raises:
        ValueError: a filter or a column that the table has not got, a fraction out of range, or no row that has what is
            needed.
    """
    if not 0 <= split.fraction < 1:
        raise ValueError(f"validation_fraction {split.fraction}: from 0 to below 1")
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
            raise ValueError(f"where {split.where!r}: no row of the table")
        raise ValueError(f"none of the {rows} rows has all that training needs: {', '.join(columns)}")
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
    """Whether each value's hash falls into the share that validates; the same on every machine and in every run."""
    encoded = (
        values.dictionary_encode() if isinstance(values, pa.Array) else values.combine_chunks().dictionary_encode()
    )
    chosen = np.array([_share(str(value)) < fraction for value in encoded.dictionary.to_pylist()] + [False], np.bool_)
    codes = encoded.indices.fill_null(len(chosen) - 1).to_numpy(zero_copy_only=False)
    return np.asarray(chosen[codes], np.bool_)


def _share(value: str) -> float:
    return int.from_bytes(hashlib.blake2b(value.encode(), digest_size=8).digest(), "big") / 2.0**64
