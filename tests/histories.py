"""Random histories of a table, by isthmus and by other tools, compared with a plain model in memory."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import lance
import lancedb
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.embed import EmbedConfig
from jobs.embed import run as embed
from jobs.maintain import MaintainConfig
from jobs.maintain import run as maintain
from jobs.rejects import RetryConfig, retry
from jobs.sync import SyncConfig
from jobs.sync import run as sync
from pipelines.cluster.resources import Resources
from pipelines.ingest.engines.protocol import EnginePlan, Ran
from pipelines.ingest.planning import plan_pools
from pipelines.ingest.sink import landing
from pipelines.ingest.sink.queueing import CommitQueue
from pipelines.ingest.stages.pipeline import Stages
from pipelines.ingest.stages.reading import ShardWork
from pipelines.ledger.reading import read_rejects
from pipelines.store import faults
from pipelines.store.storage import TableRef

_POINTS = (
    *("before_lease", "after_lease", "before_rejects", "after_rejects", "before_commit", "after_commit"),
    *("after_record", "before_sweep", "before_reject_sweep", "before_release"),
)


class InlineEngine:
    """Runs the stages in this process, block by block: a run takes milliseconds."""

    def resources(self) -> Resources:
        return Resources(cpus=1, gpus=0.0)

    def plan(self, work: Sequence[ShardWork], block_rows: int) -> EnginePlan:
        return EnginePlan(pools=plan_pools(self.resources(), actors=1), block_rows=block_rows)

    def run(self, stages: Stages, work: list[ShardWork], queue: CommitQueue, progress: Callable[[int], None]) -> Ran:
        encoder = stages.encoder()
        for block in stages.read(iter(work)):
            queue.add(stages.stage([encoder.encode(stages.decode(block))]))
            queue.commit_if_due()
        queue.commit()
        progress(queue.rows)
        return Ran(engine="process", cores=1, actors=1, read_tasks=1)


class History:
    """A corpus, its table, and what must be in the table.

    Attributes:
        files: file name → {key: caption or None}, the corpus as it is.
        log: what happened, for a failure's message.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.folder = folder
        self.corpus = folder / "corpus"
        self.corpus.mkdir(parents=True)
        self.database = folder / "db"
        self.files: dict[str, dict[str, str | None]] = {}
        self.log: list[str] = []
        # Keys that a user deleted from the table. They stay away, unless coverage is rebuilt from the rows.
        self.deleted: set[str] = set()
        # Rows that a user added. Restoring an older version may take them away.
        self.foreign: set[str] = set()
        self.extra: set[str] = set()
        self._keys = 0
        self._shift_s = 0.0

    # The corpus.

    def add_file(self) -> None:
        name = f"f{len(self.log):03d}.parquet"
        self.files[name] = self._records(self.random.randint(1, 12))
        self._write(name)

    def remove_file(self) -> None:
        if len(self.files) > 1:
            name = self.random.choice(sorted(self.files))
            del self.files[name]
            (self.corpus / name).unlink()

    def rewrite_file(self) -> None:
        if self.files:
            name = self.random.choice(sorted(self.files))
            kept = {key: caption for key, caption in self.files[name].items() if self.random.random() < 0.6}
            changed = {key: f"{caption} again" if caption else None for key, caption in kept.items()}
            self.files[name] = {**changed, **self._records(self.random.randint(1, 4))}
            self._write(name)

    def rename_file(self) -> None:
        if self.files:
            name = self.random.choice(sorted(self.files))
            new = f"r{len(self.log):03d}.parquet"
            (self.corpus / name).rename(self.corpus / new)
            self.files[new] = self.files.pop(name)

    def move_corpus(self) -> None:
        """Move the corpus between two runs. It is known by files that are the same as in the table."""
        self.embed()
        new = self.folder / f"corpus{len(self.log)}"
        self.corpus.rename(new)
        self.corpus = new
        self.random.choice((self.embed, self.sync))()

    def _records(self, n: int) -> dict[str, str | None]:
        first, self._keys = self._keys, self._keys + n
        return {f"{i:05d}": None if self.random.random() < 0.2 else f"caption {i}" for i in range(first, first + n)}

    def _write(self, name: str) -> None:
        records = self.files[name]
        table = pa.table(
            {"id": pa.array(list(records), pa.string()), "caption": pa.array(list(records.values()), pa.string())}
        )
        pq.write_table(table, self.corpus / name, row_group_size=4)

    # Jobs.

    @property
    def table(self) -> str:
        return str(self.database / "t")

    def embed(self) -> None:
        if not self.files:
            return
        embed(EmbedConfig(**self._options()))
        self.check()

    def sync(self) -> None:
        if not self.files:
            return
        sync(SyncConfig(**self._options(), max_delete_rate=1.0))
        self.check(mirrors=True)

    def kill(self) -> None:
        """Run until a random fault point."""
        point = f"{self.random.choice(_POINTS)}:{self.random.randint(1, 3)}"
        self.log.append(f"  at {point}")
        faults._passes.clear()
        with mock.patch.dict(os.environ, {faults.VARIABLE: point}), contextlib.suppress(faults.InjectedFaultError):
            self.random.choice((self.embed, self.sync))()

    def two_drivers(self) -> None:
        """A driver is suspended right before a commit; its lease runs out, and another does the work."""
        happened: list[bool] = []
        passes = [self.random.randint(1, 3)]

        def suspended(point: str) -> None:
            passes[0] -= point == "before_commit"
            if passes[0] <= 0 and not happened and self.exists():
                happened.append(True)
                dataset = lance.dataset(f"{self.table}.lance")
                holder = json.loads(dataset.config().get("isthmus.lease", "{}"))
                if holder:
                    dataset.update_config({"isthmus.lease": json.dumps({**holder, "expires": 1.0})})
                    self.embed()

        with mock.patch.object(landing, "fault", suspended), contextlib.suppress(RuntimeError):
            self.embed()

    def retry(self) -> None:
        if self.exists() and lance.dataset(f"{self.table}.lance").count_rows():
            with contextlib.suppress(ValueError, FileNotFoundError):  # nothing to retry, or the corpus has moved
                retry(RetryConfig(table=self.table, reason=["missing_caption"]))

    def maintain(self) -> None:
        if self.exists():
            maintain(MaintainConfig(table=self.table, keep_versions=self.random.randint(1, 3)))

    def set_clock(self) -> None:
        self._shift_s = self.random.choice((-7200.0, 0.0, 660.0))

    @contextlib.contextmanager
    def clock(self) -> Iterator[None]:
        now = time.time

        def shifted() -> float:
            return now() + self._shift_s

        with mock.patch.object(time, "time", shifted):
            yield

    def _options(self) -> dict[str, Any]:
        return {
            **{"corpus": str(self.corpus), "table": self.table, "encoder": "fake", "columns": {"key": "id"}},
            **{"block_rows": 4, "fragment_rows": 8, "commit_rows": self.random.choice((4, 12, 100))},
        }

    # Other tools.

    def exists(self) -> bool:
        return Path(f"{self.table}.lance").exists()

    def user(self) -> None:
        """One change by lancedb."""
        if not self.exists():
            return
        table = lancedb.connect(str(self.database)).open_table("t")
        names = table.schema.names
        what = self.random.choice(("add", "update", "delete", "column", "drop", "optimize", "cleanup", "index"))
        self.log.append(f"  {what}")
        if what == "add":
            key = f"mine{len(self.log)}"
            self.foreign.add(key)
            table.add(pa.table({"row_id": [key]}))
        elif what == "update":
            table.update(where=f"row_id > '{self._some_key()}'", values={"caption": "mine"})
        elif what == "delete":
            key = self._some_key()
            self.deleted.add(key)
            table.delete(f"row_id = '{key}'")
        elif what == "column":
            table.add_columns(pa.field(f"note{len(self.log)}", pa.string()))
        elif what == "drop" and (notes := [name for name in names if name.startswith("note")]):
            table.drop_columns(notes[:1])
        elif what == "optimize":
            table.optimize()
        elif what == "cleanup":
            table.optimize(cleanup_older_than=timedelta(0))
        elif what == "index" and table.count_rows():
            table.create_scalar_index("row_id", replace=True)

    def drop(self) -> None:
        if self.exists():
            lancedb.connect(str(self.database)).drop_table("t")
            self.foreign, self.deleted = set(), set()

    def restore(self) -> None:
        if self.exists():
            dataset = lance.dataset(f"{self.table}.lance")
            version = self.random.choice([entry["version"] for entry in dataset.versions()])
            dataset.checkout_version(version).restore()

    def copy(self) -> None:
        """Go on with a copy of the table, with or without the tables beside it."""
        if not self.exists():
            return
        new = self.folder / f"db{len(self.log)}"
        shutil.copytree(self.database, new)
        if self.random.random() < 0.5:
            shutil.rmtree(new / "t_ledger.lance", ignore_errors=True)
        self.database = new

    def damage(self) -> None:
        ledger = self.database / "t_ledger.lance"
        if ledger.exists():
            for file in (ledger / "data").glob("*"):
                file.write_bytes(b"garbage")

    def _some_key(self) -> str:
        return f"{self.random.randrange(max(1, self._keys)):05d}"

    # The checks share no code with the sink.

    def check(self, *, mirrors: bool = False) -> None:
        """Compare the table with the model.

        Args:
            mirrors: whether rows of files that are gone must have left, as after a sync.
        """
        wanted = {key: caption for file in self.files.values() for key, caption in file.items()}
        rows = lance.dataset(f"{self.table}.lance").to_table(columns=["row_id", "text_vector"]).to_pylist()
        found = Counter(row["row_id"] for row in rows)
        assert max(found.values(), default=1) == 1, f"twice: {[key for key, n in found.items() if n > 1]}"
        rejects = read_rejects(TableRef.parse(self.table), limit=10_000)
        refused = Counter(row["row_id"] for row in rejects.rows)
        missing = {key for key, caption in wanted.items() if caption} - set(found) - self.deleted
        assert not missing, f"lost: {sorted(missing)}"
        bad = {key for key, caption in wanted.items() if not caption}
        assert bad <= set(refused), f"rejects lost: {sorted(bad - set(refused))}"
        assert all(row["text_vector"] is not None for row in rows if row["row_id"] not in self.foreign)
        if mirrors:
            assert set(found) <= set(wanted) | self.foreign, f"too many: {sorted(set(found) - set(wanted))}"
            # Until a sync, rejects of files that are gone stay beside those of files that took their keys.
            assert max(refused.values(), default=1) == 1, f"rejects twice: {refused}"
            assert set(refused) == bad, f"too many rejects: {sorted(set(refused) - bad)}"
