"""`isthmus export` and `isthmus import`: write a table as files for other tools, or create a table from such files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from cyclopts import Parameter
from pydantic import Field

from jobs.config import CorpusStoreConfig, StoreConfig, TableConfig


@Parameter(name="*")
class ExportConfig(TableConfig, CorpusStoreConfig):
    """Config of `isthmus export`."""

    table: str = Field(
        description="The table to export: FOLDER/NAME or "
        "s3://BUCKET/FOLDER/NAME. Append @VERSION or @TAG for an older version."
    )
    out: str = Field(description="Folder for the files, local or s3://…. It must be empty.")
    format: Literal["npy", "parquet", "huggingface", "fiftyone"] = Field(
        default="npy",
        description="Format of the files. npy: arrays with Parquet metadata, the layout of "
        "clip-retrieval and embedding-reader. parquet: everything in Parquet. huggingface: a "
        "folder for datasets.load_dataset. fiftyone: a folder for fiftyone.Dataset.from_dir.",
    )
    pictures: bool = Field(
        default=False,
        description="Copy the pictures into the folder, for the formats huggingface and "
        "fiftyone. Without it, fiftyone opens the pictures at their original place.",
    )
    vectors: str | None = Field(default=None, description="Vector columns to export, as a,b; default: all.")
    where: str | None = Field(default=None, description="SQL filter of the rows to export; default: all rows.")
    rows_per_file: int | None = Field(
        default=None,
        ge=1,
        description="Rows in one file, which are in memory at once; default: 100,000, or 250 with --pictures.",
    )
    out_storage_options: dict[str, str] = Field(
        default_factory=dict,
        repr=False,
        description="Options of the store of OUT, named as in --storage-options. Default: taken from the environment.",
    )


@Parameter(name="*")
class ImportConfig(StoreConfig):
    """Config of `isthmus import`."""

    folder: str = Field(
        description="Folder to import, local or s3://…. It holds "
        "img_emb, text_emb or both beside metadata, or Parquet files."
    )
    table: str = Field(description="The table to create: FOLDER/NAME or s3://BUCKET/FOLDER/NAME.")
    encoder: str = Field(
        description="The encoder that made the vectors. Searches of the table encode their queries with it."
    )
    key: str | None = Field(
        default=None,
        description="Column with the row ids; default: row_id or key if there is one, else the rows are numbered.",
    )
    check: bool = Field(
        default=True,
        description="Check that --encoder made the vectors: encode a few captions and pictures and compare.",
    )
    folder_storage_options: dict[str, str] = Field(
        default_factory=dict,
        repr=False,
        description="Options of the store of FOLDER, named as in "
        "--storage-options. Default: taken from the environment.",
    )


@dataclass(frozen=True, kw_only=True)
class ExchangeReport:
    """Facts about what was written or read, by name."""

    facts: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return self.facts


def run_export(config: ExportConfig) -> ExchangeReport:
    """Write a table's rows as files.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: a column does not exist, the filter is invalid, the folder is not empty, or the format does not
            support an option or the place of the pictures.
    """
    from pipelines.curate.exchange.exporting import export_table
    from pipelines.store.storage import Storage

    table = config.ref(config.table, versions=True)
    done = export_table(
        table,
        config.out,
        format=config.format,
        storage=Storage.from_options(config.out_storage_options),
        vectors=[name.strip() for name in config.vectors.split(",")] if config.vectors else (),
        where=config.where,
        rows_per_file=config.rows_per_file,
        pictures=config.picture_storage(table) if config.pictures else None,
    )
    return ExchangeReport(facts={"table": config.table, **asdict(done)})


def run_import(config: ImportConfig) -> ExchangeReport:
    """Create a table from existing embeddings.

    Raises:
        FileNotFoundError: the folder holds no embeddings.
        ValueError: another encoder made the vectors, they do not fit their metadata, or the table already exists.
    """
    from pipelines.curate.exchange.importing import import_folder
    from pipelines.store.storage import Storage

    done = import_folder(
        config.folder,
        config.ref(config.table),
        config.encoder,
        storage=Storage.from_options(config.folder_storage_options),
        key=config.key,
        check=config.check,
    )
    return ExchangeReport(facts=asdict(done))
