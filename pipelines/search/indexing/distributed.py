"""An IVF_RQ index made by many workers: each indexes some of the fragments by one set of centroids and one rotation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipelines.search.indexing.parameters import IndexPlan
from pipelines.store.retries import retry
from pipelines.store.storage import TableRef
from pipelines.tables.opening import open_at, open_dataset

if TYPE_CHECKING:
    import lance
    from lance.dataset import Index

_SAMPLE_RATE = 256  # vectors that k-means sees for each partition
_SAMPLE_BYTES = 4 << 30  # that they take as float32, on the driver
_LEAST_RATE = 39  # with fewer, k-means finds poor centroids, as FAISS warns
_RETRIES = 3


def create_on_ray(table: TableRef, column: str, plan: IndexPlan, workers: int, num_bits: int = 5) -> None:
    """Build an IVF_RQ index on Ray and put it in the old one's place, in one commit.

    The driver trains the centroids on a sample; RaBitQ's rotation (Gao, Long, 2024) is drawn once, so that codes of all
    workers can be compared. Rows that are appended meanwhile are searched exactly, as always.

    Args:
        table: the table.
        column: of vectors.
        plan: type IVF_RQ, and its partitions.
        workers: at most so many tasks.
        num_bits: of a dimension's code; 5 is Lance's own default.

    Raises:
        OSError: the store fails.
    """
    import ray
    from lance.indices import IndicesBuilder
    from lance.lance import indices as native

    from pipelines.cluster.session import ensure_ray, plain_errors

    dataset = open_dataset(table)
    field = dataset.schema.field(column).type
    rows = dataset.count_rows(f"{column} IS NOT NULL")
    rate = sample_rate(rows, plan.partitions, field.list_size)
    model = IndicesBuilder(dataset, column).train_ivf(plan.partitions, distance_type="cosine", sample_rate=rate)
    rotation = native.build_rq_model(field.list_size, num_bits)
    ensure_ray()
    centroids = ray.put(model.centroids)
    task: Any = ray.remote(build_segment).options(max_retries=_RETRIES, num_cpus=1)
    with plain_errors():
        groups = share_fragments(dataset, workers)
        version = int(dataset.version)
        segments = ray.get(
            [task.remote(table, version, column, plan.partitions, group, centroids, rotation) for group in groups]
        )
    merged = retry(lambda: dataset.merge_existing_index_segments(segments), table.uri)
    open_dataset(table).commit_existing_index_segments(f"{column}_idx", column, [merged])


def sample_rate(rows: int, partitions: int, dim: int) -> int:
    """Vectors that k-means sees for each partition, so that their memory is bounded: 256, or what 4 GiB hold.

    Args:
        rows: vectors in the column.
        partitions: how many centroids are trained.
        dim: of a vector; it is held as float32.

    Returns:
        At least 39 but where the column itself has fewer, and at least 1.

    >>> sample_rate(1_000_000, 1_000, 512), sample_rate(1_000_000_000, 31_623, 512), sample_rate(5_000, 1_000, 512)
    (256, 66, 5)
    """
    held = _SAMPLE_BYTES // (4 * dim * partitions)
    return max(1, min(_SAMPLE_RATE, max(held, _LEAST_RATE), rows // partitions))


def share_fragments(dataset: lance.LanceDataset, workers: int) -> list[list[int]]:
    """Fragment ids in at most `workers` groups of about as many rows: the largest goes where there is least.

    Args:
        dataset: at the version that is indexed.
        workers: how many groups.

    Returns:
        No group is empty; each fragment is in one.
    """
    sizes = {fragment.fragment_id: fragment.count_rows() for fragment in dataset.get_fragments()}
    groups: list[list[int]] = [[] for _ in range(min(workers, len(sizes)))]
    loads = [0] * len(groups)
    for fragment, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        least = loads.index(min(loads))
        groups[least].append(fragment)
        loads[least] += size
    return groups


def build_segment(
    table: TableRef, version: int, column: str, partitions: int, fragments: list[int], centroids: Any, rotation: str
) -> Index:
    """Index some fragments, without publishing it; a Ray task.

    Args:
        table: the table.
        version: that all workers see.
        column: of vectors.
        partitions: how many centroids there are.
        fragments: ids.
        centroids: float32 (partitions, dim), as an Arrow array of fixed-size lists.
        rotation: RaBitQ's, as JSON.

    Returns:
        Lance's record of the segment, for `merge_existing_index_segments`.

    Raises:
        OSError: the store fails.
    """
    dataset = open_at(table, version)
    return dataset.create_index_uncommitted(
        column,
        "IVF_RQ",
        name=f"{column}_idx",
        metric="cosine",
        num_partitions=partitions,
        ivf_centroids=centroids,
        rabitq_model=rotation,
        fragment_ids=fragments,
        replace=True,
    )
