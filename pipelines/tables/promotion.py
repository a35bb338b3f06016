"""Which table answers for a name: the table itself, or one that was promoted to its place.

Another encoder gives vectors of another length, so its vectors cannot be a version of the same table. They go into a
table of their own, the shadow. A promotion writes into the config of the first table which table, at which version,
answers for it from now on. A tag keeps that version from being cleaned up. All promotions are recorded, so that one
command can undo the last one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pipelines.store.storage import TableRef
from pipelines.tables.opening import open_at, open_dataset

if TYPE_CHECKING:
    import lance

_KEY = "isthmus.published"
_TAG = "published"


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """A promoted table: it answers in another table's place.

    Attributes:
        name: the promoted table, in the same database.
        version: the version of it that answers.
        why: the grounds for the decision, as text.
    """

    name: str
    version: int
    why: str


def promotions(dataset: lance.LanceDataset) -> list[Promotion]:
    """All promotions that were not undone, oldest first. The last one is in force."""
    raw = dataset.config().get(_KEY)
    return [Promotion(**entry) for entry in json.loads(raw)] if raw else []


def answering(table: TableRef) -> tuple[TableRef, lance.LanceDataset]:
    """The table that answers for a name, at its version. If `table` names a version, the table itself at that version.

    Raises:
        FileNotFoundError: there is no such table, or the promoted one was removed.
    """
    dataset = open_dataset(table)
    stack = promotions(dataset)
    if not stack or table.version is not None:
        return table, dataset
    promoted = TableRef(database=table.database, name=stack[-1].name, storage=table.storage)
    try:
        return promoted, open_at(promoted, stack[-1].version)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"table {table}: was replaced by {promoted.name}@{stack[-1].version}, which no longer exists; "
            f"undo the promotion with `isthmus promote {table} --rollback`"
        ) from error


def promote(table: TableRef, candidate: TableRef, version: int, why: str) -> Promotion:
    """Let a version of `candidate` answer for `table`.

    Raises:
        ValueError: the two are in different databases.
    """
    if candidate.database != table.database:
        raise ValueError(
            f"candidate {candidate}: must be in the database of {table}, so that the two stay together when it is moved"
        )
    shadow = open_dataset(candidate)
    tag = f"{_TAG}-{version}"
    if tag not in shadow.tags.list():
        shadow.tags.create(tag, version)
    promotion = Promotion(name=candidate.name, version=version, why=why)
    _write(table, [*promotions(open_dataset(table)), promotion])
    return promotion


def roll_back(table: TableRef) -> tuple[Promotion, str]:
    """Undo the last promotion.

    Returns:
        The promotion that was undone, and the name of the table that answers now.

    Raises:
        ValueError: nothing was promoted.
    """
    stack = promotions(open_dataset(table))
    if not stack:
        raise ValueError(f"table {table}: nothing was promoted; the table answers for itself")
    _write(table, stack[:-1])
    return stack[-1], stack[-2].name if len(stack) > 1 else table.name


def _write(table: TableRef, stack: list[Promotion]) -> None:
    open_dataset(table).update_config({_KEY: json.dumps([asdict(entry) for entry in stack])})
