"""A write that the store accepted but whose response was lost: repeating it duplicates rows, giving up loses them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from faulty_store import FaultyStore, faulty
from sink_tools import SCHEMA, block, committer_of, row_ids, stage
from stores import BUCKET, moto, options

from pipelines.ledger.ledger import Ledger
from pipelines.ledger.reading import read_rejects
from pipelines.store.storage import Storage, TableRef
from pipelines.tables.opening import create_dataset, open_dataset

TIMEOUTS = {"request_timeout": "2s", "connect_timeout": "1s"}


@pytest.fixture(scope="module")
def store() -> Iterator[FaultyStore]:
    with moto() as endpoint, faulty(endpoint) as proxy:
        yield proxy


@pytest.fixture
def table(store: FaultyStore, request: pytest.FixtureRequest) -> TableRef:
    name = re.sub(r"\W+", "-", request.node.name)
    ref = TableRef.parse(f"s3://{BUCKET}/db/{name}", Storage.from_options(options(store.endpoint) | TIMEOUTS))
    create_dataset(ref, SCHEMA)
    return ref


@pytest.mark.parametrize("times", [1, 5], ids=["the client tries again", "the client gives up"])
def test_a_commit_whose_answer_was_lost_counts_once(store: FaultyStore, table: TableRef, times: int) -> None:
    committer = committer_of(table)
    committer.commit([stage(table, block("a", 0, 10))])
    before = store.faults["reset_after"]
    version = open_dataset(table).version
    store.begin("reset_after", method="PUT", path=f"/{table.name}.lance/_versions/", times=times)
    committer.commit([stage(table, block("a", 10, 30, end=30, rejected=frozenset({12})))])
    assert store.faults["reset_after"] > before

    assert row_ids(table) == sorted(f"a-{i}" for i in range(30) if i != 12)
    assert open_dataset(table).version == version + 1
    assert (committer.done.commits, committer.done.written, committer.done.redone) == (2, 29, 0)
    assert committer.done.rejected == {"corrupt_image": 1}
    ledger = Ledger.reconcile(table)
    assert ledger.coverage.rows("a") == 30
    assert ledger.coverage.is_complete("a", None)


@pytest.mark.parametrize("beside", ["ledger", "rejects"])
def test_what_lies_beside_the_table_is_not_counted_twice(store: FaultyStore, table: TableRef, beside: str) -> None:
    """The ledger is append-only: a row that is in it twice would report records as skipped that never were."""
    committer = committer_of(table)
    for start in (0, 10):
        before = store.faults["reset_after"]
        store.begin("reset_after", method="PUT", path=f"_{beside}.lance/_versions/", times=2)
        committer.commit([stage(table, block("a", start, start + 10, rejected=frozenset({start + 1})))])
        assert store.faults["reset_after"] > before
    assert Ledger.reconcile(table).coverage.rows("a") == 20
    assert read_rejects(table).by_reason == {"corrupt_image": 2}
    assert len(row_ids(table)) == 18


def test_a_lease_whose_answer_was_lost_is_held_and_given_back(store: FaultyStore, table: TableRef) -> None:
    store.begin("reset_after", method="PUT", path=f"/{table.name}.lance/_versions/", times=3)
    committer = committer_of(table)
    committer.commit([stage(table, block("a", 0, 5))])
    store.begin("reset_after", method="PUT", path=f"/{table.name}.lance/_versions/", times=3)
    committer._lease.release()
    assert store.faults["reset_after"] >= 2
    committer_of(table)  # nobody holds it
    assert len(row_ids(table)) == 5


def test_a_version_that_is_listed_and_not_given_does_not_pass_for_a_missing_table(
    store: FaultyStore, table: TableRef
) -> None:
    """If the table were taken for missing, it would be created anew."""
    store.begin("not_found", method="GET", path=f"/{table.name}.lance/_versions/", times=2)
    assert open_dataset(table, missing_ok=True) is not None
    store.begin("not_found", method="GET", path=f"/{table.name}.lance/_versions/", times=200)
    with pytest.raises(FileNotFoundError, match="lists this table but does not serve it"):
        open_dataset(table, missing_ok=True)
