"""The settings and the report of a bulk search, and the check that queries and table fit together."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from encoders.protocol import Modality, TowerCard
from pipelines.rows.contract import ROW_ID, VECTOR_COLUMNS
from pipelines.search.bulk.results import PART, QUERY, QUERY_ID, RANK, RUN_KEY, SCORE
from pipelines.store.storage import TableRef
from pipelines.tables.filters import check_filter
from pipelines.tables.provenance import Provenance

if TYPE_CHECKING:
    import lance

Method = Literal["auto", "exact", "lists"]


class BulkRecallError(RuntimeError):
    """Approximate search misses too much; nothing was written."""


@dataclass(frozen=True, kw_only=True)
class BulkSettings:
    """Settings of a bulk search.

    Attributes:
        ask: modality of the queries' vectors.
        search: modality of the searched vectors. None is `image` if the two can be compared, else the same as `ask`.
        k: number of results per query.
        where: SQL filter on the searched table.
        columns: columns of the searched table to copy into the results.
        distinct: at most one row per item.
        method: `exact`, `lists`, or `auto` to choose by the number of pairs.
        target_recall: recall that the lists must reach on a sample of queries; below it the run stops.
        seed: seed for the samples.
    """

    ask: Modality = "text"
    search: Modality | None = None
    k: int = 10
    where: str | None = None
    columns: tuple[str, ...] = ()
    distinct: bool = False
    method: Method = "auto"
    target_recall: float = 0.95
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class BulkReport:
    """Report of a bulk search.

    Attributes:
        out: the table of results.
        version: the version that holds them.
        queries: number of queries that have a vector.
        skipped: number of queries that have none.
        gallery: number of rows searched.
        results: number of rows in `out`.
        reused: number of queries whose results an earlier run had left.
        search: modality of the searched vectors.
        method: `exact` or `lists`.
        recall: measured recall of the lists; 1 for exact search.
        seconds: total time.
        queries_per_s: queries per second, of those that this run searched.
    """

    out: str
    version: int
    queries: int
    skipped: int
    gallery: int
    results: int
    reused: int
    search: str
    method: str
    recall: float
    seconds: float
    queries_per_s: float

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return asdict(self)


def check_request(
    queries: TableRef, asking: lance.LanceDataset, table: TableRef, dataset: lance.LanceDataset, settings: BulkSettings
) -> tuple[BulkSettings, pa.Schema]:
    """The settings with all defaults resolved, and the schema of the results.

    Raises:
        EncoderMismatchError: the two tables are from different encoders.
        ValueError: a vector or a column is missing, the spaces differ, or the filter is invalid.
    """
    theirs = Provenance.from_schema(asking.schema, str(queries))
    own = Provenance.from_schema(dataset.schema, str(table))
    own.check_same_encoder(theirs.encoder, str(table))
    asked = _tower(theirs, settings.ask, queries)
    if settings.search is None:
        pictures = own.vector_columns().get(VECTOR_COLUMNS["image"])
        in_one_space = pictures is not None and pictures.space == asked.space
        settings = replace(settings, search="image" if in_one_space else settings.ask)
    assert settings.search is not None
    if asked.space != _tower(own, settings.search, table).space:
        raise ValueError(
            f"ask {settings.ask!r} and search {settings.search!r}: vectors of {own.encoder.name!r} for the two are in "
            "different spaces and cannot be compared"
        )
    if settings.where is not None:
        check_filter(settings.where, dataset)
    fields = [
        pa.field(QUERY_ID, pa.string()),
        pa.field(QUERY, pa.string()),
        pa.field(RANK, pa.int32()),
        pa.field(ROW_ID, pa.string()),
        pa.field(SCORE, pa.float32()),
    ]
    taken = {field.name for field in fields} | {PART}
    for name in settings.columns:
        if name not in dataset.schema.names:
            raise ValueError(f"columns: table {table} has no {name!r}; it has {', '.join(dataset.schema.names)}")
        if name in taken:
            raise ValueError(f"columns: {name!r} is a column of the results already; leave it out")
        fields.append(dataset.schema.field(name).remove_metadata())
    record = {
        "queries": [str(queries), int(asking.version)],
        "table": [str(table), int(dataset.version)],
        "encoder": own.encoder.to_dict(),
        "settings": asdict(settings),
    }
    metadata = {RUN_KEY: json.dumps(record, sort_keys=True).encode()}
    return settings, pa.schema([*fields, pa.field(PART, pa.int32())], metadata=metadata)


def _tower(provenance: Provenance, modality: Modality, table: TableRef) -> TowerCard:
    """The tower that made a table's vectors of one modality.

    Raises:
        ValueError: the table has no such vectors.
    """
    column, there = VECTOR_COLUMNS[modality], provenance.vector_columns()
    if column not in there:
        raise ValueError(f"table {table}: has no {column}; it has {', '.join(there) or 'no vectors'}")
    return there[column]
