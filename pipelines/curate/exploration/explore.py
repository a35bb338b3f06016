"""Explores a table: clusters, outliers, near-duplicates, and pairs that do not match."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoders.protocol import Modality
from pipelines.curate.deduplication.leaders import KEPT, find_leaders
from pipelines.curate.exploration.mapping import Cluster, describe_clusters, find_clusters, project
from pipelines.curate.exploration.reading import Mismatched, VectorSample, draw, least_alike, outlierness
from pipelines.rows.contract import CAPTION, VECTOR_COLUMNS
from pipelines.store.storage import TableRef
from pipelines.tables.filters import check_filter
from pipelines.tables.provenance import Provenance

if TYPE_CHECKING:
    import lance


@dataclass(frozen=True, kw_only=True)
class ExploreSettings:
    """What to explore.

    Attributes:
        modality: the modality whose vectors are used; None takes pictures if the table has any.
        where: SQL filter; None takes all rows.
        rows: number of rows that the map shows, sampled by `seed`.
        found: number of outliers and of mismatched pairs to report.
        threshold: least cosine at which two rows of the map are near-duplicates.
        seed: seed of the sample and of the map.
    """

    modality: Modality | None = None
    where: str | None = None
    rows: int = 3_000
    found: int = 24
    threshold: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Explored:
    """The results of exploring a table.

    Attributes:
        table: the table.
        version: version of the table.
        modality: the modality whose vectors were used.
        sample: the n rows of the map.
        points: float32 (n, 2), the rows' points on the map.
        cluster: int64 (n,), number of each row's cluster, −1 for none.
        clusters: the clusters, the largest first.
        leader: int64 (n,), the row of the sample of which each row is a near-duplicate; −1 for none.
        outlierness: float32 (n,), mean cosine distance to the nearest other rows of the whole table.
        mismatched: mismatched pairs of the whole table; None if pictures and captions cannot be compared.
    """

    table: TableRef
    version: int
    modality: Modality
    sample: VectorSample
    points: NDArray[np.float32]
    cluster: NDArray[np.int64]
    clusters: list[Cluster]
    leader: NDArray[np.int64]
    outlierness: NDArray[np.float32]
    mismatched: Mismatched | None

    def outliers(self, count: int) -> list[int]:
        """Indices of the `count` rows that are farthest from all others, the farthest first."""
        return np.argsort(-self.outlierness, kind="stable")[:count].tolist()

    def groups(self) -> list[list[int]]:
        """Groups of near-duplicates as indices, the kept row first; the largest group first."""
        found: dict[int, list[int]] = {}
        for row in np.flatnonzero(self.leader != KEPT).tolist():
            found.setdefault(int(self.leader[row]), [int(self.leader[row])]).append(row)
        return sorted(found.values(), key=len, reverse=True)

    def rows(self) -> pa.Table:
        """The rows of the map with all results per row, without pictures."""
        names = {cluster.number: cluster.name for cluster in self.clusters}
        ids = self.sample.rows["row_id"].combine_chunks()
        duplicate = pa.array(np.maximum(self.leader, 0), mask=self.leader == KEPT)
        table = self.sample.rows.select(["row_id", "item_id", CAPTION])
        for name, values in (
            ("x", pa.array(self.points[:, 0])),
            ("y", pa.array(self.points[:, 1])),
            ("cluster", pa.array(self.cluster, mask=self.cluster < 0)),
            ("cluster_name", pa.array([names.get(number) for number in self.cluster.tolist()], pa.string())),
            ("duplicate_of", ids.take(duplicate)),
            ("outlierness", pa.array(self.outlierness)),
        ):
            table = table.append_column(name, values)
        return table


def explore(table: TableRef, dataset: lance.LanceDataset, settings: ExploreSettings) -> Explored:
    """Explore a table.

    Args:
        table: reference to the table.
        dataset: the opened table.
        settings: what to explore.

    Raises:
        ModuleNotFoundError: the extra `explore` is not installed.
        ValueError: the table has no such vectors, the filter is invalid, or no row is selected.
    """
    columns = Provenance.from_schema(dataset.schema, str(table)).vector_columns()
    modality = settings.modality or ("image" if VECTOR_COLUMNS["image"] in columns else "text")
    if VECTOR_COLUMNS[modality] not in columns:
        raise ValueError(
            f"table {table}: has no {VECTOR_COLUMNS[modality]}; it has {', '.join(columns) or 'no vectors'}"
        )
    if settings.where is not None:
        check_filter(settings.where, dataset)
    sample = draw(dataset, modality, settings.where, settings.rows, settings.seed)
    if not len(sample):
        raise ValueError(f"table {table}: no row has a vector" + (f" where {settings.where}" if settings.where else ""))
    points = project(sample.vectors, settings.seed)
    cluster = find_clusters(points)
    captions = sample.rows[CAPTION].to_pylist()
    comparable = len(columns) == 2 and len({tower.space for tower in columns.values()}) == 1
    return Explored(
        table=table,
        version=int(dataset.version),
        modality=modality,
        sample=sample,
        points=points,
        cluster=cluster,
        clusters=describe_clusters(sample.vectors, cluster, captions),
        leader=find_leaders([sample.vectors], settings.threshold).leader,
        outlierness=outlierness(dataset, modality, settings.where, sample),
        mismatched=least_alike(dataset, settings.where, settings.found) if comparable else None,
    )
