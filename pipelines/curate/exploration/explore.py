"""Look over a table: what lies together, what lies apart, what is there twice, which pairs do not match."""

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
    """What is looked at.

    Attributes:
        modality: by whose vectors; None takes pictures where the table has any.
        where: SQL filter.
        rows: how many rows the map shows; they are drawn by `seed`.
        found: how many outliers and mismatched pairs to tell.
        threshold: cosine from which on two rows of the map are near-duplicates.
        seed: of the draw and of the map.
    """

    modality: Modality | None = None
    where: str | None = None
    rows: int = 3_000
    found: int = 24
    threshold: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Explored:
    """What was seen.

    Attributes:
        table: that was looked at.
        version: of it.
        modality: by whose vectors.
        sample: the rows of the map.
        points: float32 (n, 2).
        cluster: int64 (n,), −1 for none.
        clusters: the largest first.
        leader: int64 (n,), which row of the sample each one is a near-duplicate of; −1 for none.
        outlierness: float32 (n,), mean cosine distance to the nearest others of the whole table.
        mismatched: of the whole table; None where pictures and captions cannot be compared.
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
        """Indexes of the rows that lie farthest from all others, the farthest first."""
        return np.argsort(-self.outlierness, kind="stable")[:count].tolist()

    def groups(self) -> list[list[int]]:
        """Near-duplicates: indexes, the row that stands for them first; the largest group first."""
        found: dict[int, list[int]] = {}
        for row in np.flatnonzero(self.leader != KEPT).tolist():
            found.setdefault(int(self.leader[row]), [int(self.leader[row])]).append(row)
        return sorted(found.values(), key=len, reverse=True)

    def rows(self) -> pa.Table:
        """The rows of the map with all that was found of each, without pictures."""
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
    """Look over a table.

    Args:
        table: by name.
        dataset: of it.
        settings: what is looked at.

    Raises:
        ModuleNotFoundError: the extra `explore` is not installed.
        ValueError: the table has no such vectors, the filter is none, or no row is left.
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
