"""Builds an IVF_RQ index with many workers. They share centroids and rotation; each indexes some of the fragments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipelines.search.indexing.parameters import IndexPlan
from pipelines.store.retries import retry
from pipelines.store.storage import TableRef
from pipelines.tables.opening import open_at, open_dataset

if TYPE_CHECKING:
    import lance
    from lance.dataset import Index

_SAMPLE_RATE = 256  # vectors per partition for k-means
_SAMPLE_BYTES = 4 << 30  # memory for these vectors as float32, on the driver
_LEAST_RATE = 39  # below this, k-means finds poor centroids (FAISS warns)
_RETRIES = 3


def create_on_ray(table: TableRef, column: str, plan: IndexPlan, workers: int, num_bits: int = 5) -> None:
    """Build an IVF_RQ index on Ray, and replace the old index with it in one commit.

    The driver trains the centroids on a sample. RaBitQ's rotation (Gao, Long, 2024) is drawn once, so that the codes of
    all workers can be compared. Rows that are appended meanwhile are searched exactly, as always.

    Args:
        table: the table.
        column: a vector column.
        plan: type IVF_RQ and the number of partitions.
        workers: largest number of tasks.
        num_bits: bits per dimension of a code; 5 is Lance's own default.

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
    """Vectors per partition for k-means, limited by memory: 256, or as many as 4 GiB hold.

    Args:
        rows: number of vectors in the column.
        partitions: number of centroids to train.
        dim: number of dimensions; vectors are held as float32.

    Returns:
        At least 39, unless the column itself has fewer per partition, and at least 1.

    >>> sample_rate(1_000_000, 1_000, 512), sample_rate(1_000_000_000, 31_623, 512), sample_rate(5_000, 1_000, 512)
    (256, 66, 5)
    """
    held = _SAMPLE_BYTES // (4 * dim * partitions)
    return max(1, min(_SAMPLE_RATE, max(held, _LEAST_RATE), rows // partitions))


def share_fragments(dataset: lance.LanceDataset, workers: int) -> list[list[int]]:
    """Fragment ids in at most `workers` groups with about equal numbers of rows.

    The largest fragments are assigned first, each to the group with the fewest rows.

    Args:
        dataset: the dataset, at the version that is indexed.
        workers: largest number of groups.

    Returns:
        The groups. No group is empty; each fragment is in one.
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
    """Index some fragments without publishing the index; a Ray task.

    Args:
        table: the table.
        version: the version that all workers index.
        column: a vector column.
        partitions: number of centroids.
        fragments: ids of the fragments to index.
        centroids: float32 (partitions, dim), as an Arrow array of fixed-size lists.
        rotation: RaBitQ's rotation, as JSON.

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
