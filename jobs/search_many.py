"""`isthmus search-many`: a file of queries, or millions of them, against a table; the results are a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from pydantic import Field

from jobs.config import StoreConfig

if TYPE_CHECKING:
    from pipelines.search.bulk.request import BulkReport
    from pipelines.store.storage import Storage, TableRef


@Parameter(name="*")
class SearchManyConfig(StoreConfig):
    """Config of `isthmus search-many`."""

    queries: str = Field(
        description="A corpus of captions or pictures (as `isthmus embed` reads them), which is embedded first; or a "
        "table that is embedded already."
    )
    table: str = Field(description="What is searched: FOLDER/NAME or s3://BUCKET/FOLDER/NAME.")
    out: str = Field(description="The table of results; replaced if it is one already, never if it is another.")
    ask: Literal["words", "image"] = Field(default="words", description="By which side of the queries.")
    vector: Literal["image_vector", "text_vector"] | None = Field(
        default=None,
        description="Vector column that is searched; else that of pictures, if it can be compared with the queries.",
    )
    k: Annotated[int, Parameter(name=("--k", "-k"))] = Field(
        default=10, ge=1, le=1_000, description="Results of each query."
    )
    where: str | None = Field(default=None, description="SQL filter on the table's columns, applied first.")
    take: str | None = Field(default=None, description="Columns of the table that come along, a,b,c.")
    distinct: bool = Field(default=False, description="At most one row of each item.")
    method: Literal["auto", "exact", "lists"] = Field(
        default="auto", description="exact up to 2e10 pairs, else within lists of k-means of measured recall."
    )
    target_recall: float = Field(default=0.95, gt=0, le=1, description="Of the lists; below it the job is refused.")
    original: bool = Field(default=False, description="Ask the table itself, though another was promoted.")
    parquet: Path | None = Field(default=None, description="Write the results into this Parquet file, too.")
    columns: dict[str, str] = Field(default_factory=dict, description="Of the queries, as for `isthmus embed`.")
    seed: int = Field(default=0, ge=0, description="Of the samples.")
    queries_storage_options: dict[str, str] = Field(
        default_factory=dict, repr=False, description="How to reach a corpus of queries."
    )


@dataclass(frozen=True, kw_only=True)
class SearchManyReport:
    """What was done.

    Attributes:
        found: of the search.
        queries_table: the table that holds the queries.
        rejected: queries that could not be embedded; `isthmus rejects` of that table tells why.
    """

    found: BulkReport
    queries_table: str
    rejected: int

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return {**self.found.to_dict(), "queries_table": self.queries_table, "rejected": self.rejected}


def run(config: SearchManyConfig, progress: Callable[[int, int | None], None] | None = None) -> SearchManyReport:
    """Search a table by many queries; a run that was interrupted goes on.

    Args:
        config: the job.
        progress: called with (queries done, queries in all).

    Raises:
        FileNotFoundError: there is no such table or corpus.
        EncoderMismatchError: the queries are embedded by another encoder.
        ValueError: queries and table do not fit together, or `out` is another kind of table.
        BulkRecallError: the lists miss too much.
    """
    from pipelines.rows.contract import MODALITIES
    from pipelines.search.bulk.answering import search_many
    from pipelines.search.bulk.request import BulkSettings
    from pipelines.store.storage import TableRef
    from pipelines.tables.promotion import answering

    storage = config.storage()
    table = TableRef.parse(config.table, storage)
    if not config.original:
        table, _ = answering(table)
    settings = BulkSettings(
        ask="text" if config.ask == "words" else "image",
        search=MODALITIES[config.vector] if config.vector else None,
        k=config.k,
        where=config.where,
        columns=tuple(name.strip() for name in config.take.split(",") if name.strip()) if config.take else (),
        distinct=config.distinct,
        method=config.method,
        target_recall=config.target_recall,
        seed=config.seed,
    )
    out = TableRef.parse(config.out, storage)
    queries, rejected = _queries(config, table, out, storage)
    found = search_many(queries, table, out, settings, progress or (lambda done, total: None))
    if config.parquet is not None:
        _write_parquet(out, config.parquet)
    return SearchManyReport(found=found, queries_table=str(queries), rejected=rejected)


def _queries(config: SearchManyConfig, table: TableRef, out: TableRef, storage: Storage) -> tuple[TableRef, int]:
    """The table of the queries, and how many queries were rejected.

    It is the one that was named; or `OUT_queries_…`, of this corpus and encoder alone, which is brought up to date.
    """
    from encoders.digest import digest_json
    from jobs.embed import EmbedConfig
    from jobs.sync import SyncConfig
    from jobs.sync import run as sync
    from pipelines.store.storage import TableRef, absolute
    from pipelines.tables.opening import open_dataset
    from pipelines.tables.provenance import Provenance

    if _is_table(config.queries, storage):
        return TableRef.parse(config.queries, storage), 0
    encoder = Provenance.from_schema(open_dataset(table).schema, str(table)).encoder
    identity = digest_json([absolute(config.queries), config.ask, config.columns, encoder.fingerprint])
    queries = out.sibling(f"queries_{identity[:8]}")
    job = EmbedConfig(
        corpus=config.queries,
        table=str(queries),
        encoder=encoder.spec,
        embed="text" if config.ask == "words" else "image",
        columns=config.columns,
        storage_options=config.storage_options,
        corpus_storage_options=config.queries_storage_options,
    )
    # What is no query any more leaves: the results are those of the file as it is now.
    report = sync(SyncConfig(**job.model_dump(exclude_unset=True), max_delete_rate=1.0))
    return queries, sum(report.rejected.values())


def _is_table(name: str, storage: Storage) -> bool:
    """Whether a name is that of a table rather than of a corpus."""
    from pipelines.store.storage import TableRef
    from pipelines.tables.opening import open_dataset

    try:
        ref = TableRef.parse(name, storage)
    except ValueError:
        return False
    return open_dataset(ref, missing_ok=True) is not None


def _write_parquet(out: TableRef, path: Path) -> None:
    """The results as one Parquet file, batch by batch."""
    import pyarrow.parquet as pq

    from pipelines.search.bulk.results import PART
    from pipelines.tables.opening import open_dataset

    dataset = open_dataset(out)
    names = [name for name in dataset.schema.names if name != PART]
    scanner = dataset.scanner(columns=names, scan_in_order=True)
    with pq.ParquetWriter(path, scanner.projected_schema) as writer:
        for batch in scanner.to_batches():
            writer.write_batch(batch)
