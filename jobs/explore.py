"""`isthmus explore`: a map of a table's vectors with clusters, outliers, near-duplicates and mismatched pairs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import Parameter
from pydantic import Field

from jobs.config import CorpusStoreConfig, TableConfig

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import RenderableType

    from pipelines.curate.exploration.explore import Explored


@Parameter(name="*")
class ExploreConfig(TableConfig, CorpusStoreConfig):
    """Config of `isthmus explore`."""

    table: str = Field(
        description="The table to explore: FOLDER/NAME or "
        "s3://BUCKET/FOLDER/NAME. Append @VERSION or @TAG for an older version."
    )
    html: Path = Field(
        default=Path("explore.html"), description="File to write the map to, as a self-contained HTML page."
    )
    out: Path | None = Field(
        default=None, description="Folder to also write rows, clusters and mismatched pairs to, as Parquet files."
    )
    by: Literal["auto", "image", "text"] = Field(
        default="auto",
        description="Vectors that the map shows. auto: image vectors if the table has any, else text vectors.",
    )
    where: str | None = Field(default=None, description="SQL filter of the rows to explore; default: all rows.")
    rows: int = Field(default=3_000, ge=1, le=50_000, description="Number of rows on the map, drawn at random.")
    found: int = Field(default=24, ge=1, le=1_000, description="Number of outliers and of mismatched pairs to show.")
    threshold: float = Field(
        default=0.95,
        gt=0,
        le=2,
        description="Rows on the map whose cosine similarity is at least this are near-duplicates.",
    )
    original: bool = Field(
        default=False, description="Explore the table itself, even if another table was promoted in its place."
    )
    seed: int = Field(default=0, ge=0, description="Random seed of the draw of rows and of the map.")


@dataclass(frozen=True, kw_only=True)
class ExploreReport:
    """What was found, and the files that were written."""

    explored: Explored
    found: int
    page: str
    files: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        seen = self.explored
        ids = seen.sample.rows["row_id"].to_pylist()
        mismatched = seen.mismatched
        return {
            "table": str(seen.table),
            "version": seen.version,
            "by": seen.modality,
            "rows": seen.sample.total,
            "shown": len(seen.sample),
            "clusters": [{"size": c.size, "captions": list(c.captions)} for c in seen.clusters],
            "near_duplicates": [[ids[row] for row in group] for group in seen.groups()[: self.found]],
            "outliers": [
                {"row_id": ids[row], "distance": round(float(seen.outlierness[row]), 4)}
                for row in seen.outliers(self.found)
            ],
            "mismatched": None if mismatched is None else _plain(mismatched.rows),
            "mean_cosine": None if mismatched is None else round(mismatched.mean, 4),
            "page": self.page,
            "files": list(self.files),
        }

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        seen = self.explored
        head = Text(f"{len(seen.sample):,} of {seen.sample.total:,} rows, {len(seen.clusters)} clusters", style="bold")
        table = Table("rows", "typical captions", box=None, header_style="bold", pad_edge=False)
        for cluster in seen.clusters[:20]:
            table.add_row(f"{cluster.size:,}", cluster.name)
        groups = seen.groups()
        odd = [f"{sum(map(len, groups)) - len(groups):,} near-duplicates in {len(groups):,} groups"]
        if seen.mismatched is not None and seen.mismatched.rows.num_rows:
            odd.append(f"lowest cosine of a pair {seen.mismatched.rows['score'][0].as_py():.3f}")
        return Group(head, *([table] if seen.clusters else []), Text("; ".join(odd)), Text(f"page: {self.page}"))


def run(config: ExploreConfig) -> ExploreReport:
    """Explore a table and write its map.

    Raises:
        FileNotFoundError: there is no such table.
        ModuleNotFoundError: the extra `explore` is not installed.
        ValueError: the table lacks the vectors to map, or the filter selects no row.
    """
    from pipelines.curate.exploration.explore import ExploreSettings, explore
    from pipelines.curate.exploration.map_page import write_map
    from pipelines.tables.opening import open_dataset
    from pipelines.tables.promotion import answering

    table = config.ref(config.table, versions=True)
    table, dataset = (table, open_dataset(table)) if config.original else answering(table)
    settings = ExploreSettings(
        modality=None if config.by == "auto" else config.by,
        where=config.where,
        rows=config.rows,
        found=config.found,
        threshold=config.threshold,
        seed=config.seed,
    )
    explored = explore(table, dataset, settings)
    page = write_map(config.html, explored, config.found, config.picture_storage(table))
    files = _write_tables(config.out, explored) if config.out is not None else ()
    return ExploreReport(explored=explored, found=config.found, page=str(page), files=files)


def _write_tables(folder: Path, explored: Explored) -> tuple[str, ...]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    clusters = [{"cluster": c.number, "size": c.size, "captions": list(c.captions)} for c in explored.clusters]
    schema = pa.schema([("cluster", pa.int64()), ("size", pa.int64()), ("captions", pa.list_(pa.string()))])
    tables = {"rows": explored.rows(), "clusters": pa.Table.from_pylist(clusters, schema=schema)}
    if explored.mismatched is not None:
        found = explored.mismatched.rows
        tables["mismatched"] = found.drop_columns([n for n in found.column_names if n == "thumbnail"])
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, table in tables.items():
        path = folder / f"{name}.parquet"
        pq.write_table(table, path)
        paths.append(str(path))
    return tuple(paths)


def _plain(rows: pa.Table) -> list[dict[str, Any]]:
    return [
        {"row_id": row["row_id"], "caption": row["caption"], "cosine": round(row["score"], 4)}
        for row in rows.select(["row_id", "caption", "score"]).to_pylist()
    ]
