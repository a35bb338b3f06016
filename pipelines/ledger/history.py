"""The history of a table, commit by commit, as its transactions tell it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from pipelines.store.retries import is_of_the_store, retry

if TYPE_CHECKING:
    import lance

TOKEN_PROPERTY = "isthmus.commit"


@dataclass(frozen=True, kw_only=True)
class Commit:
    """What a version's transaction says.

    Attributes:
        token: what tells this commit from every other one, also in another history of the table; None if Lance cannot
            show the transaction.
        properties: the properties that the committer recorded.
        replaces_rows: whether the commit put other rows in place of all rows: a restored version, or an overwrite.
        is_empty: whether the table has no rows after a commit that replaces them.
        moves_rows: whether rows of earlier commits may be elsewhere, or gone, without a word in the properties.
    """

    token: str | None
    properties: dict[str, str] = field(default_factory=dict)
    replaces_rows: bool = False
    is_empty: bool = False
    moves_rows: bool = True


def commit_at(dataset: lance.LanceDataset, version: int) -> Commit | None:
    """The commit that made a version; None if the version was cleaned up.

    Raises:
        OSError: the store cannot be read.
    """
    try:
        return retry(partial(_read, dataset, version), str(dataset.uri))
    except (OSError, ValueError) as error:
        if is_of_the_store(error):
            raise
        return None


def _read(dataset: lance.LanceDataset, version: int) -> Commit | None:
    import lance

    try:
        transaction = dataset.read_transaction(version)
    except TypeError as error:
        # Lance (14.0.2) cannot show a compaction that moved an indexed row. Such a commit adds no rows.
        if "RewrittenIndex" not in str(error):
            raise
        return Commit(token=None)
    if transaction is None:
        return None
    properties = transaction.transaction_properties or {}
    operation = transaction.operation
    return Commit(
        token=properties.get(TOKEN_PROPERTY) or transaction.uuid,
        properties=properties,
        replaces_rows=isinstance(operation, lance.LanceOperation.Overwrite | lance.LanceOperation.Restore),
        is_empty=isinstance(operation, lance.LanceOperation.Overwrite) and not operation.fragments,
        moves_rows=TOKEN_PROPERTY not in properties and not isinstance(operation, _leave_rows_alone()),
    )


def _leave_rows_alone() -> tuple[type, ...]:
    from lance import LanceOperation

    return (LanceOperation.Append, LanceOperation.UpdateConfig, LanceOperation.CreateIndex)
