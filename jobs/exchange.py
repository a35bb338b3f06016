"""`isthmus export` and `isthmus import`: tables to other tools' files and back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from cyclopts import Parameter
from pydantic import Field

from jobs.config import CorpusStoreConfig, StoreConfig, TableConfig


@Parameter(name="*")
class ExportConfig(TableConfig, CorpusStoreConfig):
    """Config of `isthmus export`."""

    table: str = Field(description="FOLDER/NAME or s3://BUCKET/FOLDER/NAME; as it was with @VERSION or @TAG.")
    out: str = Field(description="An empty folder, local or s3://….")
    format: Literal["npy", "parquet", "huggingface", "fiftyone"] = Field(
        default="npy",
        description="npy: arrays beside Parquet, as clip-retrieval and embedding-reader have them; huggingface: "
        "a folder for datasets.load_dataset; fiftyone: one for fiftyone.Dataset.from_dir.",
    )
    pictures: bool = Field(
        default=False,
        description="With huggingface and fiftyone: the pictures themselves come along. "
        "Without, fiftyone opens them where they are.",
    )
    vectors: str | None = Field(default=None, description="Vector columns, a,b; default: all.")
    where: str | None = Field(default=None, description="SQL filter on the table's columns.")
    rows_per_file: int | None = Field(
        default=None, ge=1, description="One file's rows are in memory; default: 100,000, with pictures 250."
    )
    out_storage_options: dict[str, str] = Field(default_factory=dict, repr=False, description="How to reach OUT.")


@Parameter(name="*")
class ImportConfig(StoreConfig):
    """Config of `isthmus import`."""

    folder: str = Field(description="With img_emb and/or text_emb beside metadata, or with Parquet; local or s3://….")
    table: str = Field(description="The new table: FOLDER/NAME or s3://BUCKET/FOLDER/NAME.")
    encoder: str = Field(description="The encoder that made the vectors; queries are encoded by it.")
    key: str | None = Field(default=None, description="Column of row ids; default: row_id or key, else numbers.")
    check: bool = Field(default=True, description="Encode a few captions and pictures, and compare.")
    folder_storage_options: dict[str, str] = Field(
        default_factory=dict, repr=False, description="How to reach the folder."
    )


@dataclass(frozen=True, kw_only=True)
class ExchangeReport:
    """What was written or read."""

    facts: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return self.facts


def run_export(config: ExportConfig) -> ExchangeReport:
    """Write a table's rows as files.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: a column is not there, the filter is none, the folder is not empty, or the format does not go with
            an option or with where the pictures are.
    """
    from pipelines.curate.exchange.exporting import export_table
    from pipelines.store.storage import Storage

    done = export_table(
        config.ref(config.table, versions=True),
        config.out,
        format=config.format,
        storage=Storage.from_options(config.out_storage_options),
        vectors=[name.strip() for name in config.vectors.split(",")] if config.vectors else (),
        where=config.where,
        rows_per_file=config.rows_per_file,
        pictures=config.corpus_storage() if config.pictures else None,
    )
    return ExchangeReport(facts={"table": config.table, **asdict(done)})


def run_import(config: ImportConfig) -> ExchangeReport:
    """Make a table of embeddings that are there already.

    Raises:
        FileNotFoundError: the folder holds nothing of the kind.
        ValueError: the vectors are another encoder's, do not fit their metadata, or the table is there already.
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
