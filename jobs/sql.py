"""`isthmus sql`: run one SQL statement over tables, with similarity functions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter
from pydantic import Field, field_validator

from jobs.config import TableConfig

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import RenderableType

_SHOWN_ROWS = 100
_WRITERS = (".parquet", ".csv", ".arrow")


@Parameter(name="*")
class SqlConfig(TableConfig):
    """Config of `isthmus sql`."""

    table: str = Field(
        description="The table to query: FOLDER/NAME or s3://BUCKET/FOLDER/NAME. The statement refers to it as NAME."
    )
    statement: str = Field(
        description="The statement, in DuckDB's SQL. Similarity functions: similar_to_words(image_vector, "
        "'red shoes'), similar_to_picture(image_vector, 'FILE'), similar_to_row(image_vector, 'ROW ID')."
    )
    also: list[str] = Field(
        default_factory=list,
        description="Further table that the statement refers to by its NAME; repeat it for several.",
    )
    out: Path | None = Field(
        default=None, description="Write all rows to this .parquet, .csv or .arrow file; default: show the first 100."
    )

    @field_validator("out")
    @classmethod
    def _known_suffix(cls, out: Path | None) -> Path | None:
        if out is not None and out.suffix not in _WRITERS:
            raise ValueError(f"is {out}; give a file that ends in {', '.join(_WRITERS)}")
        return out


@dataclass(frozen=True, kw_only=True)
class SqlReport:
    """The rows that the statement returned."""

    rows: pa.Table
    out: str | None

    def to_dict(self) -> dict[str, Any]:
        """The rows as JSON-ready data, without bytes; only their number if they were written to a file."""
        from pipelines.rows.hits import plain_rows

        return {"rows": plain_rows(self.rows) if self.out is None else self.rows.num_rows, "out": self.out}

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        from jobs.display import rows_table
        from pipelines.rows.hits import plain_rows

        if self.out is not None:
            return Text(f"{self.rows.num_rows:,} rows: {self.out}")
        if not self.rows.num_rows:
            return Text("no rows")
        shown = rows_table(plain_rows(self.rows.slice(0, _SHOWN_ROWS)))
        more = self.rows.num_rows - _SHOWN_ROWS
        return Group(shown, *([Text(f"… and {more:,} more; --out FILE writes them all")] if more > 0 else []))


def run(config: SqlConfig) -> SqlReport:
    """Run a statement and write its rows to a file if the config names one.

    Raises:
        FileNotFoundError: a table does not exist.
        ModuleNotFoundError: the extra `sql` is not installed.
        ValueError: the statement is invalid, or two tables have the same name.
    """
    from pipelines.search.retrieval.search import OpenTable
    from pipelines.search.retrieval.sql import run_sql
    from pipelines.store.storage import TableRef

    storage = config.storage()
    refs = [TableRef.parse(name, storage) for name in (config.table, *config.also)]
    names = [ref.name for ref in refs]
    if len(set(names)) < len(names):
        raise ValueError(f"also: two tables have the name {max(names, key=names.count)}")
    rows = run_sql({ref.name: OpenTable.open(ref) for ref in refs}, config.statement)
    if config.out is not None:
        _write(rows, config.out)
    return SqlReport(rows=rows, out=str(config.out) if config.out else None)


def _write(rows: pa.Table, out: Path) -> None:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".parquet":
        pa.parquet.write_table(rows, out)
    elif out.suffix == ".csv":
        pa.csv.write_csv(rows, out)
    else:
        with pa.OSFile(str(out), "wb") as file, pa.ipc.new_file(file, rows.schema) as writer:
            writer.write_table(rows)
