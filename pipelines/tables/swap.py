"""A commit that lands on the version that it was decided on, or not at all: the compare-and-swap of all writers here.

Lance has no strict append: a stale `Append` rebases and lands. Two operations are strict. An `Update` without retries
that names the table's first fragment, changed or not: Lance rebases an `Update` over others that touch other fragments,
so two that name the same one conflict. And, for a table that has no fragment yet, a `Merge` of all fragments; it would
always do, but writes the fragment list three times over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipelines.store.storage import TableRef

if TYPE_CHECKING:
    import lance
    from lance.fragment import FragmentMetadata


def swap_operation(
    dataset: lance.LanceDataset,
    new: Sequence[FragmentMetadata] = (),
    updated: Sequence[FragmentMetadata] = (),
    removed: Sequence[int] = (),
) -> lance.LanceOperation.BaseOperation:
    """The operation that changes some fragments of this version and conflicts with every other such operation on it.

    Args:
        dataset: the version that the commit is decided on.
        new: fragments to add.
        updated: fragments with rows deleted.
        removed: ids of fragments of which no row is left.
    """
    import lance

    fragments = dataset.get_fragments()
    if not fragments:
        return lance.LanceOperation.Merge(list(new), dataset.lance_schema)
    first = fragments[0]
    touched = {fragment.id for fragment in updated} | set(removed)
    kept = [] if first.fragment_id in touched else [first.metadata]
    return lance.LanceOperation.Update(
        removed_fragment_ids=list(removed),
        updated_fragments=[*kept, *updated],
        new_fragments=list(new),
        fields_modified=[],
    )


def swap(
    table: TableRef,
    dataset: lance.LanceDataset,
    operation: lance.LanceOperation.BaseOperation,
    properties: Mapping[str, str] | None = None,
) -> lance.LanceDataset:
    """Commit an operation of `swap_operation`; return the new version.

    Raises:
        OSError: another such commit came first (see `is_conflict`), or the store refuses.
    """
    import lance

    transaction = lance.Transaction(
        read_version=dataset.version, operation=operation, transaction_properties=dict(properties or {})
    )
    return lance.LanceDataset.commit(table.uri, transaction, storage_options=table.options, max_retries=0)
