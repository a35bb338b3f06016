"""`isthmus info`: what a table holds and where it came from."""

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
    """What a table holds; `fused` says how its fused vectors were made, if it has any."""

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
        ValueError: it was not made by `isthmus embed`.
    """
    from pipelines.tables.opening import open_dataset
    from pipelines.tables.provenance import Provenance
    from pipelines.tables.rejects import read_rejects

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
