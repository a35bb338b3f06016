"""`isthmus search-many`: search a table with many queries, up to millions. The results are a table."""

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
        description="The queries: a corpus of captions or pictures (any that `isthmus "
        "embed` reads), which is embedded first, or a table that is already embedded."
    )
    table: str = Field(description="The table to search: FOLDER/NAME or s3://BUCKET/FOLDER/NAME.")
    out: str = Field(
        description="The table of results to write. An existing one is replaced; a table of another kind never is."
    )
    ask: Literal["words", "image"] = Field(
        default="words", description="Part of each query row to search by: its words (the caption) or its image."
    )
    vector: Literal["image_vector", "text_vector"] | None = Field(
        default=None,
        description="Vector column to search; default: image_vector if the queries "
        "can be compared with it, else the column of the queries' own kind.",
    )
    k: Annotated[int, Parameter(name=("--k", "-k"))] = Field(
        default=10, ge=1, le=1_000, description="Number of results for each query."
    )
    where: str | None = Field(
        default=None, description="SQL filter of the rows to search, applied before the search; default: all rows."
    )
    take: str | None = Field(
        default=None, description="Columns of the searched table to copy into the results, as a,b,c; default: none."
    )
    distinct: bool = Field(default=False, description="Return at most one row of each item for each query.")
    method: Literal["auto", "exact", "lists"] = Field(
        default="auto",
        description="exact: compare all pairs. lists: search only within lists of "
        "k-means, with measured recall. auto: exact up to 2e10 pairs, else lists.",
    )
    target_recall: float = Field(
        default=0.95,
        gt=0,
        le=1,
        description="Least recall of lists, compared with exact search; the job fails below it.",
    )
    original: bool = Field(
        default=False, description="Search the table itself, even if another table was promoted in its place."
    )
    parquet: Path | None = Field(default=None, description="Also write the results to this Parquet file.")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Column names of a corpus of queries: --columns.ROLE "
        "NAME, where ROLE is key, image, uri, caption or item.",
    )
    seed: int = Field(
        default=0, ge=0, description="Random seed of the samples that k-means and the recall measurement draw."
    )
    queries_storage_options: dict[str, str] = Field(
        default_factory=dict,
        repr=False,
        description="Options of the store of a corpus of queries, named "
        "as in --storage-options. Default: taken from the environment.",
    )


@dataclass(frozen=True, kw_only=True)
class SearchManyReport:
    """The report of a bulk search.

    Attributes:
        found: counts, method, recall and rate of the search.
        queries_table: URI of the table that holds the embedded queries.
        rejected: number of queries that could not be embedded. `isthmus rejects` on `queries_table` shows the reasons.
    """

    found: BulkReport
    queries_table: str
    rejected: int

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return {**self.found.to_dict(), "queries_table": self.queries_table, "rejected": self.rejected}


def run(config: SearchManyConfig, progress: Callable[[int, int | None], None] | None = None) -> SearchManyReport:
    """Search a table with many queries. A run after an interrupted one continues.

    Args:
        config: the job.
        progress: called with (queries done, total queries).

    Raises:
        FileNotFoundError: there is no such table or corpus.
        EncoderMismatchError: another encoder embedded the queries.
        ValueError: queries and table do not fit together, or `out` is a table of another kind.
        BulkRecallError: the recall of the lists is below the target.
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
    """The table of the queries, and the number of rejected queries.

    The table is the named one, or `OUT_queries_…`, which holds only this corpus under this encoder and is brought up to
    date.
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
    # Queries that left the file are removed: the results are those of the file as it is now.
    report = sync(SyncConfig(**job.model_dump(exclude_unset=True), max_delete_rate=1.0))
    return queries, sum(report.rejected.values())


def _is_table(name: str, storage: Storage) -> bool:
    """Whether a name is the URI of an existing table, not of a corpus."""
    from pipelines.store.storage import TableRef
    from pipelines.tables.opening import open_dataset

    try:
        ref = TableRef.parse(name, storage)
    except ValueError:
        return False
    return open_dataset(ref, missing_ok=True) is not None


def _write_parquet(out: TableRef, path: Path) -> None:
    """Write the results to one Parquet file, batch by batch."""
    import pyarrow.parquet as pq

    from pipelines.search.bulk.results import PART
    from pipelines.tables.opening import open_dataset

    dataset = open_dataset(out)
    names = [name for name in dataset.schema.names if name != PART]
    scanner = dataset.scanner(columns=names, scan_in_order=True)
    with pq.ParquetWriter(path, scanner.projected_schema) as writer:
        for batch in scanner.to_batches():
            writer.write_batch(batch)
