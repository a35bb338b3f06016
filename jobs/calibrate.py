"""`isthmus calibrate`: turn scores into match probabilities."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter

from jobs.config import TableConfig

if TYPE_CHECKING:
    from pipelines.search.retrieval.calibration import Calibration


@Parameter(name="*")
class CalibrateConfig(TableConfig):
    """Config of `isthmus calibrate`."""


@dataclass(frozen=True, kw_only=True)
class CalibrateReport:
    """The fitted curves, each with its quality on held-out queries."""

    table: str
    curves: list[Calibration]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        rows = [{name: value for name, value in asdict(c).items() if name != "centre"} for c in self.curves]
        return {"table": self.table, "curves": rows}


def run(config: CalibrateConfig) -> CalibrateReport:
    """Fit the curves and store them with the table. `isthmus search` then gives each hit a match probability.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: image and text vectors are not in a joint space, or the table has too few pairs.
    """
    from pipelines.search.retrieval.calibration import calibrate
    from pipelines.tables.promotion import answering

    table, dataset = answering(config.ref(config.table))
    return CalibrateReport(table=str(table), curves=calibrate(dataset, str(table)))
