"""Whatever happens to a corpus, `sync` leaves the table that `embed` would make of it in an empty one."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import lance
import pytest
from corpora import Pair, pairs, write_parquet
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jobs.embed import EmbedConfig
from jobs.embed import run as embed
from jobs.sync import SyncConfig
from jobs.sync import run as sync

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
_EXAMPLES = 40 if os.environ.get("HYPOTHESIS_PROFILE") == "free" else 8
ITEMS = pairs(12)
FOLDERS = ("", "a/", "a/b/", "c/")
GLOBS = {
    "folder": ("", "/*", "/**/*", "/*.[jt]*", "/a", "/**/*.jpg", "/?/*.*"),
    "parquet": ("", "/*", "/*.parquet", "/a/**", "/**/*.parquet", "/[ac]*"),
}
ACTIONS = ("add", "remove", "rewrite", "rename", "copy", "empty", "half", "rename a folder", "move", "link", "embed")
STEPS = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=6)


class World:
    """A corpus on disk and the changes to it. Each write has another time, as it has when nights pass between."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind
        self.root = folder / "corpus"
        self.root.mkdir()
        self.shown = self.root
        self._clock = itertools.count(1_700_000_000)

    def stems(self) -> list[Path]:
        """The files, or pairs of files, without their suffixes."""
        return sorted({path.with_suffix("") for path in self.root.rglob("*") if path.is_file()})

    def write(self, stem: Path, n: int) -> None:
        item = ITEMS[n % len(ITEMS)]
        stem.parent.mkdir(parents=True, exist_ok=True)
        if self.kind == "parquet":
            found = [Pair(f"{stem.name}-{k}", ITEMS[(n + k) % 12].image, f"{n} {k}", k) for k in range(1 + n % 3)]
            self._stamp(write_parquet(stem.with_suffix(".parquet"), found))
            return
        if n % 5:
            stem.with_suffix(".jpg").write_bytes(item.image if n % 7 else b"broken")
            self._stamp(stem.with_suffix(".jpg"))
        if n % 5 != 1:
            stem.with_suffix(".txt").write_text(item.caption)
            self._stamp(stem.with_suffix(".txt"))

    def _stamp(self, path: Path) -> None:
        seconds = next(self._clock)
        os.utime(path, (seconds, seconds))

    def parts(self, stem: Path) -> list[Path]:
        return [path for suffix in (".jpg", ".txt", ".parquet") if (path := stem.with_suffix(suffix)).exists()]

    def change(self, action: str, a: int, b: int) -> None:
        """One change; none if there is nothing to change."""
        stems = self.stems()
        target = self.root / f"{FOLDERS[b % len(FOLDERS)]}f{b % 7}"
        stem = stems[a % len(stems)] if stems else target
        if action == "add":
            self.write(target, a)
        elif action == "rewrite":
            for path in self.parts(stem):
                path.unlink()
            self.write(stem, b)
        elif action in ("remove", "half"):
            for path in self.parts(stem)[: 1 if action == "half" else None]:
                path.unlink()
        elif action in ("rename", "copy") and not self.parts(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            for path in self.parts(stem):
                (shutil.move if action == "rename" else shutil.copy2)(path, target.with_suffix(path.suffix))
        elif action == "empty":
            for path in self.parts(stem):
                if path.suffix == ".parquet":
                    write_parquet(path, [])
                else:
                    path.write_bytes(b"")
                self._stamp(path)
        elif action == "rename a folder" and (self.root / "a").exists() and not (self.root / "d").exists():
            (self.root / "a").rename(self.root / "d")
        elif action == "move":
            self.root = self.shown = self.root.rename(self.folder / f"corpus{next(self._clock)}")
        elif action == "link":
            self.shown = self.folder / f"link{next(self._clock)}"
            self.shown.symlink_to(self.root)


def run(job: Any, config: Any, corpus: str, table: Path, **more: Any) -> str | None:
    """Run a job; returns why it refuses a corpus that holds nothing, or nothing for this table."""
    try:
        job(config(corpus=corpus, table=str(table), encoder="fake", engine="process", embed="any", **more))
    except FileNotFoundError as error:
        return str(error)
    except ValueError as error:
        # A table of captions alone takes no pictures.
        if any(said in str(error) for said in ("holds no rows", "none of which isthmus", "has no column")):
            return str(error)
        raise
    return None


def contents(table: Path) -> tuple[Counter[Any], Counter[Any]]:
    """Rows and rejects, each with the number of times that it is there."""
    path = Path(f"{table}.lance")
    if not path.exists():
        return Counter(), Counter()
    dataset = lance.dataset(str(path))
    names = [name for name in ("row_id", "item_id", "caption", "path", "id", "year") if name in dataset.schema.names]
    rows = Counter(tuple(row.values()) for row in dataset.to_table(columns=names).to_pylist())
    rejects = Path(f"{table}_rejects.lance")
    columns = ["row_id", "stage", "reason", "caption"]
    found = lance.dataset(str(rejects)).to_table(columns=columns).to_pylist() if rejects.exists() else []
    return rows, Counter(tuple(row.values()) for row in found)


@settings(max_examples=_EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(GLOBS)), st.integers(0, 99), st.lists(STEPS, min_size=2, max_size=3))
@example("folder", 0, [[("add", 6, 0), ("add", 2, 1)], [("add", 3, 0)], [("half", 0, 0)]])
@example("parquet", 0, [[("add", 0, 0), ("add", 1, 1)], [("empty", 0, 0)], [("rename", 1, 5), ("move", 0, 0)]])
def test_a_synced_table_is_that_of_a_clean_run(kind: str, pick: int, nights: list[Any]) -> None:
    """Over random trees, globs, renames, moves, links and empty rewrites; `embed` may run in between."""
    pattern = GLOBS[kind][pick % len(GLOBS[kind])]
    with tempfile.TemporaryDirectory() as folder:
        world, table = World(Path(folder), kind), Path(folder) / "db" / "t"
        for night in nights:
            for step in night:
                if step[0] == "move":  # A folder is known by its files, so some must be as they were.
                    run(sync, SyncConfig, f"{world.shown}{pattern}", table, max_delete_rate=1)
                world.change(*step)
                if step[0] in ("embed", "move"):
                    run(embed, EmbedConfig, f"{world.shown}{pattern}", table)
            corpus = f"{world.shown}{pattern}"
            refused = run(sync, SyncConfig, corpus, table, max_delete_rate=1)
            clean = Path(folder) / "clean" / "t"
            if run(embed, EmbedConfig, corpus, clean) is None and refused is None:
                assert contents(table) == contents(clean)
            shutil.rmtree(clean.parent, ignore_errors=True)
