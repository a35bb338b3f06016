"""Recall and latency of `isthmus` search beside FAISS and usearch, on the same vectors, cores and queries, in one run.

    python benchmarks/search.py --rows 1000000 --dim 512 --folder /tmp/search

Makes clustered vectors, half of the queries from another direction than the vectors (as words lie apart from pictures).
Each index is tuned to the target recall@10 on some queries; then the others are asked one at a time, the indexes taking
turns, and the median of each is reported with its recall. Exact answers come from one pass over the vectors. Also
measures isthmus under filters that leave a half, a hundredth and a ten-thousandth of the rows. Needs `faiss-cpu` and
`usearch`; prints a Markdown table and one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance
import numpy as np
import psutil
import pyarrow as pa
from numpy.typing import NDArray

from encoders.registry import describe
from pipelines.contract import CAPTION, IMAGE_URI, ITEM_ID, ROW_ID
from pipelines.indexing.build import build_vector_index
from pipelines.provenance import Provenance
from pipelines.retrieval.search import OpenTable
from pipelines.storage import TableRef

K, TUNING, ASKED, ROUNDS = 10, 60, 60, 3
_CENTRES, _BLOCK = 2_000, 100_000
Search = Callable[[NDArray[np.float32]], NDArray[np.int64]]


@dataclass
class Contender:
    """An index that was tuned: how it is asked, and what it cost."""

    name: str
    search: Search
    build_s: float
    parameters: str


def vectors_of(rows: int, dim: int, seed: int = 0) -> Iterator[NDArray[np.float32]]:
    """Blocks of unit vectors around some thousand centres."""
    centres = np.random.default_rng(1).normal(size=(_CENTRES, dim)).astype(np.float32)
    rng = np.random.default_rng(seed)
    for start in range(0, rows, _BLOCK):
        n = min(_BLOCK, rows - start)
        block = centres[rng.integers(0, _CENTRES, n)] + 0.9 * rng.normal(size=(n, dim)).astype(np.float32)
        yield unit(block)


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each of length 1."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def queries_of(dim: int) -> NDArray[np.float32]:
    """Half like the vectors, half moved in one direction, as words are from pictures."""
    found = np.concatenate(list(vectors_of(TUNING + ASKED, dim, seed=9)))
    gap = np.random.default_rng(2).normal(size=dim).astype(np.float32)
    found[::2] = unit(found[::2] + 0.7 * gap / np.linalg.norm(gap))
    return found


def write_table(folder: Path, rows: int, dim: int) -> TableRef:
    """The vectors as a table."""
    ref = TableRef.parse(str(folder / "db" / "t"))
    provenance = Provenance(encoder=describe("fake").card, modalities=("image",))
    for number, block in enumerate(vectors_of(rows, dim)):
        first = number * _BLOCK
        ids = [f"{n:08d}" for n in range(first, first + len(block))]
        table = pa.table(
            {
                ROW_ID: ids,
                ITEM_ID: ids,
                CAPTION: pa.nulls(len(ids), pa.string()),
                IMAGE_URI: pa.nulls(len(ids), pa.string()),
                "n": np.arange(first, first + len(block)),
                "image_vector": pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), dim),
            }
        ).replace_schema_metadata(provenance.to_metadata())
        lance.write_dataset(table, ref.uri, mode="append" if number else "create")
    return ref


def exact(rows: int, dim: int, queries: NDArray[np.float32], step: int = 1) -> NDArray[np.int64]:
    """The K nearest of each query among every `step`-th row, as (queries, K)."""
    scores = np.full((len(queries), K), -np.inf, np.float32)
    ids = np.zeros((len(queries), K), np.int64)
    for number, block in enumerate(vectors_of(rows, dim)):
        places = np.arange(number * _BLOCK, number * _BLOCK + len(block))
        kept = places % step == 0
        both = np.concatenate([scores, queries @ block[kept].T], axis=1)
        names = np.concatenate([ids, np.broadcast_to(places[kept], (len(queries), int(kept.sum())))], axis=1)
        best = np.argsort(-both, axis=1)[:, :K]
        scores, ids = np.take_along_axis(both, best, 1), np.take_along_axis(names, best, 1)
    return ids


def recall(search: Search, queries: NDArray[np.float32], wanted: NDArray[np.int64]) -> float:
    """Mean share of the exact neighbours that are found."""
    pairs = zip(queries, wanted, strict=True)
    return float(np.mean([len(set(search(query).tolist()) & set(best.tolist())) / K for query, best in pairs]))


def tuned(
    name: str,
    build_s: float,
    tries: list[tuple[str, Search]],
    queries: NDArray[np.float32],
    wanted: NDArray[np.int64],
    target: float,
) -> Contender:
    """The first try, from the fastest, that reaches the target; the last one where none does."""
    reaching = (t for t in tries if recall(t[1], queries, wanted) >= target)
    parameters, search = next(reaching, tries[-1])
    return Contender(name=name, search=search, build_s=round(build_s, 1), parameters=parameters)


def isthmus(ref: TableRef, target: float) -> Contender:
    """`isthmus index`, asked through `open_table`."""
    started = time.perf_counter()
    built = build_vector_index(ref, "image_vector", target, psutil.virtual_memory().total)
    seconds = time.perf_counter() - started
    opened = OpenTable.open(ref)

    def search(query: NDArray[np.float32]) -> NDArray[np.int64]:
        hits = opened.search(vector=tuple(query.tolist()), k=K, columns=())
        return np.array([int(row_id) for row_id in hits.rows[ROW_ID].to_pylist()])

    return Contender(
        name=f"isthmus ({built.type})", search=search, build_s=round(seconds, 1), parameters=str(built.parameters)
    )


def faiss_ones(
    rows: int, dim: int, queries: NDArray[np.float32], wanted: NDArray[np.int64], target: float, *, hnsw: bool
) -> Iterator[Contender]:
    """IVF-PQ with exact re-ranking, and HNSW."""
    import faiss

    faiss.omp_set_num_threads(os.cpu_count() or 1)
    lists = round(math.sqrt(rows))
    training = next(vectors_of(min(rows, _BLOCK), dim))
    for name, recipe in (("FAISS IVF-PQ, refined", f"IVF{lists},PQ{dim // 4}x8,RFlat"), ("FAISS HNSW32", "HNSW32")):
        if recipe.startswith("HNSW") and not hnsw:
            continue
        started = time.perf_counter()
        index = faiss.index_factory(dim, recipe, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(training)
        for block in vectors_of(rows, dim):
            index.add(block)
        seconds = time.perf_counter() - started

        def at(parameter: str, value: int, index: Any = index) -> Search:
            def search(query: NDArray[np.float32]) -> NDArray[np.int64]:
                if parameter == "efSearch":
                    index.hnsw.efSearch = value
                else:
                    index.k_factor = 20
                    faiss.downcast_index(index.base_index).nprobe = value
                return np.asarray(index.search(query[None], K)[1][0])

            return search

        parameter = "efSearch" if recipe.startswith("HNSW") else "nprobe"
        values = [4, 8, 16, 32, 64, 128, 256, 512, lists if parameter == "nprobe" else 1_024]
        tries = [(f"{parameter} {value}", at(parameter, value)) for value in values]
        yield tuned(name, seconds, tries, queries, wanted, target)


def usearch_one(
    rows: int, dim: int, queries: NDArray[np.float32], wanted: NDArray[np.int64], target: float
) -> Contender:
    """usearch's HNSW with half-precision vectors, its default."""
    from usearch.index import Index

    started = time.perf_counter()
    index = Index(ndim=dim, metric="cos", dtype="f16")
    for number, block in enumerate(vectors_of(rows, dim)):
        index.add(np.arange(number * _BLOCK, number * _BLOCK + len(block)), block)
    seconds = time.perf_counter() - started

    def at(expansion: int) -> Search:
        def search(query: NDArray[np.float32]) -> NDArray[np.int64]:
            index.expansion_search = expansion
            return np.asarray(index.search(query, K).keys, np.int64)

        return search

    tries = [(f"expansion {value}", at(value)) for value in (32, 64, 128, 256, 512, 1_024)]
    return tuned("usearch HNSW", seconds, tries, queries, wanted, target)


def filtered(ref: TableRef, rows: int, dim: int, queries: NDArray[np.float32]) -> dict[str, dict[str, float]]:
    """Recall and median latency of isthmus under filters, and the fewest rows that came back."""
    opened = OpenTable.open(ref)
    found = {}
    for step in (2, 100, 10_000):
        wanted = exact(rows, dim, queries, step)
        times, shares, fewest = [], [], K
        for query, best in zip(queries, wanted, strict=True):
            started = time.perf_counter()
            hits = opened.search(vector=tuple(query.tolist()), k=K, where=f"n % {step} = 0", columns=())
            times.append(time.perf_counter() - started)
            ids = {int(row_id) for row_id in hits.rows[ROW_ID].to_pylist()}
            fewest = min(fewest, len(ids))
            there = min(K, -(-rows // step))
            shares.append(len(ids & set(best[:there].tolist())) / there)
        found[f"1 in {step}"] = {
            "recall": round(float(np.mean(shares)), 4),
            "p50_ms": round(statistics.median(times) * 1e3, 2),
            "fewest_rows": fewest,
        }
    return found


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--target", type=float, default=0.95)
    parser.add_argument("--folder", type=Path, required=True, help="must not be there")
    parser.add_argument("--no-hnsw", action="store_true", help="leave out FAISS' HNSW and usearch: they build for long")
    given = parser.parse_args()
    queries = queries_of(given.dim)
    ref = write_table(given.folder, given.rows, given.dim)
    wanted = exact(given.rows, given.dim, queries)
    choosing, asked = (queries[:TUNING], wanted[:TUNING]), (queries[TUNING:], wanted[TUNING:])
    contenders = [isthmus(ref, given.target)]
    contenders += faiss_ones(given.rows, given.dim, *choosing, given.target, hnsw=not given.no_hnsw)
    if not given.no_hnsw:
        contenders.append(usearch_one(given.rows, given.dim, *choosing, given.target))

    times: dict[str, list[float]] = {c.name: [] for c in contenders}
    for _ in range(ROUNDS):
        for contender in contenders:
            for query in asked[0]:
                started = time.perf_counter()
                contender.search(query)
                times[contender.name].append(time.perf_counter() - started)
    table = [
        {
            "index": c.name,
            "recall@10": round(recall(c.search, *asked), 4),
            "p50 ms": round(statistics.median(times[c.name]) * 1e3, 2),
            "build s": c.build_s,
            "parameters": c.parameters,
        }
        for c in contenders
    ]
    filters = filtered(ref, given.rows, given.dim, asked[0])
    sys.stdout.write("| " + " | ".join(table[0]) + " |\n|" + "---|" * len(table[0]) + "\n")
    for row in table:
        sys.stdout.write("| " + " | ".join(map(str, row.values())) + " |\n")
    result = {"rows": given.rows, "dim": given.dim, "target": given.target, "indexes": table, "filters": filters}
    sys.stdout.write(json.dumps(result) + "\n")
    return int(table[0]["recall@10"] < given.target - 0.02)


if __name__ == "__main__":
    raise SystemExit(main())
