"""`isthmus info`: the content of a table and its provenance."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cyclopts import Parameter

from jobs.config import TableConfig


@Parameter(name="*")
class InfoConfig(TableConfig):
    """Config of `isthmus info`."""


@dataclass(frozen=True, kw_only=True)
class InfoReport:
    """The content of a table and its provenance.

    Attributes:
        table: the table's URI.
        rows: number of rows.
        rejected: number of rows in its rejects table.
        version: its latest version.
        versions: number of versions that still exist.
        encoder: the card of the encoder that made its vectors.
        settings: the settings of the run that created it.
        fused: the recipe of its fused vectors; None if it has none.
        columns: name and type of each column.
        indexes: name, type and columns of each index.
    """

    table: str
    rows: int
    rejected: int
    version: int
    versions: int
    encoder: dict[str, Any]
    settings: dict[str, Any]
    fused: dict[str, Any] | None
    columns: list[dict[str, Any]]
    indexes: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return asdict(self)


def run(config: InfoConfig) -> InfoReport:
    """Describe a table.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: it has no provenance, so `isthmus embed` did not make it.
    """
    from pipelines.ledger.reading import read_rejects
    from pipelines.tables.opening import open_dataset
    from pipelines.tables.provenance import Provenance

    table = config.ref(config.table)
    dataset = open_dataset(table)
    provenance = Provenance.from_schema(dataset.schema, str(table))
    indexes = [
        {"name": index.name, "type": index.index_type, "columns": list(index.field_names)}
        for index in dataset.describe_indices()
    ]
    return InfoReport(
        table=str(table),
        rows=dataset.count_rows(),
        rejected=sum(read_rejects(table, limit=0).by_reason.values()),
        version=dataset.version,
        versions=len(dataset.versions()),
        encoder=provenance.encoder.to_dict(),
        settings=provenance.settings,
        fused=asdict(provenance.fused) if provenance.fused is not None else None,
        columns=[{"name": field.name, "type": str(field.type)} for field in dataset.schema],
        indexes=indexes,
    )
