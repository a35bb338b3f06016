"""Latency of the first and later queries of a table opened in a new process, on disk and on an S3 server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.search_data import COLUMN, K
from pipelines.store.storage import TableRef
from tests.stores import options, seaweedfs, upload

_ASK = """
import json, statistics, sys, time
import numpy as np
from pipelines import open_table
uri, queries, options, column, k = json.loads(sys.argv[1])
asked = np.load(queries)
started = time.perf_counter()
table = open_table(uri, storage_options=options)
opened = time.perf_counter()
def ask(query):
    begun = time.perf_counter()
    table.search(vector=tuple(query.tolist()), vector_column=column, k=k, columns=())
    return time.perf_counter() - begun
first = ask(asked[0])
new = [ask(query) for query in asked]
again = [ask(query) for query in asked]
print(json.dumps([opened - started, first, statistics.median(new), statistics.median(again)]))
"""


def cold_and_warm(ref: TableRef, folder: Path, queries: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Milliseconds to open the table, of the first query, of queries to unread partitions, and of warm queries."""
    asked = folder / "asked.npy"
    np.save(asked, queries)
    rows = [_measured("disk, page cache dropped", f"{ref.database}/{ref.name}", asked, {}, Path(ref.uri))]
    with TemporaryDirectory(dir=folder) as store, seaweedfs(Path(store)) as endpoint:
        uri = upload(endpoint, Path(ref.uri), f"db/{ref.name}.lance")
        rows.append(_measured("S3 (SeaweedFS on this machine)", uri, asked, options(endpoint), None))
    return rows


def _measured(name: str, uri: str, asked: Path, store: dict[str, str], cached: Path | None) -> dict[str, Any]:
    for path in cached.rglob("*") if cached else ():
        if path.is_file():
            _drop_from_page_cache(path)
    given = json.dumps([uri.removesuffix(".lance"), str(asked), store, COLUMN, K])
    done = subprocess.run([sys.executable, "-c", _ASK, given], check=True, capture_output=True, text=True)
    names = ("open ms", "first query ms", "p50 ms, partitions not read yet", "p50 ms, warm")
    figures = json.loads(done.stdout.splitlines()[-1])
    return {"table on": name} | {n: round(s * 1e3, 2) for n, s in zip(names, figures, strict=True)}


def _drop_from_page_cache(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)
