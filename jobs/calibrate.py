"""`isthmus calibrate`: from scores to probabilities of match."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter
from pydantic import Field

from jobs.config import JobConfig

if TYPE_CHECKING:
    from pipelines.search.retrieval.calibration import Calibration


@Parameter(name="*")
class CalibrateConfig(JobConfig):
    """Config of `isthmus calibrate`."""

    table: str = Field(description="FOLDER/NAME or s3://BUCKET/FOLDER/NAME.")
    storage_options: dict[str, str] = Field(default_factory=dict, repr=False, description="How to reach the store.")


@dataclass(frozen=True, kw_only=True)
class CalibrateReport:
    """The curves, and how well they keep on queries that did not fit them."""

    table: str
    curves: list[Calibration]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        rows = [{name: value for name, value in asdict(c).items() if name != "centre"} for c in self.curves]
        return {"table": self.table, "curves": rows}


def run(config: CalibrateConfig) -> CalibrateReport:
    """Fit the curves and store them with the table; `search` then gives each hit a probability of match.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: words and pictures share no space, or there are too few pairs.
    """
    from pipelines.search.retrieval.calibration import calibrate
    from pipelines.store.storage import Storage, TableRef
    from pipelines.tables.promotion import answering

    table, dataset = answering(TableRef.parse(config.table, Storage.from_options(config.storage_options)))
    return CalibrateReport(table=str(table), curves=calibrate(dataset, str(table)))
