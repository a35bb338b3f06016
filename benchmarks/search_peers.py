"""FAISS, usearch and hnswlib for the search bench: built once, kept as files, queried at each of their settings."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.search_data import BLOCK, K, vectors_of

# From one query (dim,) or a batch (n, dim) to ids (K,) or (n, K).
Search = Callable[[NDArray[np.float32]], NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Try:
    """An index at one setting. Tries are ordered from the fastest setting on."""

    setting: str
    search: Search


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A peer's index.

    Attributes:
        name: name in reports.
        build: builds the index and saves it; takes rows, dim and the file.
        load: loads the index as tries; takes rows, dim and the file.
        hnsw: whether the index is an HNSW, which takes long to build.
    """

    name: str
    build: Callable[[int, int, Path], None]
    load: Callable[[int, int, Path], list[Try]]
    hnsw: bool = False

    def is_kept(self, folder: Path) -> bool:
        """Whether the folder has a finished build of the index."""
        return (folder / f"{_slug(self.name)}.json").exists()


def built(peer: Peer, folder: Path, rows: int, dim: int) -> float:
    """Processor seconds that the build took. Builds the index if it is missing."""
    path, note = folder / f"{_slug(peer.name)}.index", folder / f"{_slug(peer.name)}.json"
    if not note.exists():
        started = time.process_time()
        peer.build(rows, dim, path)
        note.write_text(json.dumps({"build_s": round(time.process_time() - started, 1)}))
    return float(json.loads(note.read_text())["build_s"])


def loaded(peer: Peer, folder: Path, rows: int, dim: int) -> list[Try]:
    """The tries of a peer, from its kept file."""
    return peer.load(rows, dim, folder / f"{_slug(peer.name)}.index")


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower())


def _faiss(recipe: Callable[[int, int], str]) -> Callable[[int, int, Path], None]:
    def build(rows: int, dim: int, path: Path) -> None:
        import faiss

        faiss.omp_set_num_threads(os.cpu_count() or 1)
        index = faiss.index_factory(dim, recipe(rows, dim), faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(next(vectors_of(min(rows, BLOCK), dim)))
        for block in vectors_of(rows, dim):
            index.add(block)
        faiss.write_index(index, str(path))

    return build


def _faiss_ivf(rows: int, dim: int, path: Path) -> list[Try]:
    import faiss

    faiss.omp_set_num_threads(os.cpu_count() or 1)
    index = faiss.read_index(str(path))
    inner = faiss.downcast_index(index.base_index) if hasattr(index, "base_index") else index
    refined = hasattr(index, "k_factor")

    def at(nprobe: int, factor: int) -> Search:
        def search(query: NDArray[np.float32]) -> NDArray[np.int64]:
            inner.nprobe = nprobe
            if refined:
                index.k_factor = factor
            ids = np.asarray(index.search(query.reshape(-1, dim), K)[1])
            return ids if query.ndim == 2 else ids[0]

        return search

    factors = (5, 20) if refined else (1,)
    probes = [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n < _lists(rows)]
    return [Try(setting=_ivf_setting(n, f, refined), search=at(n, f)) for n in probes for f in factors]


def _ivf_setting(nprobe: int, factor: int, refined: bool) -> str:
    return f"nprobe {nprobe}" + (f", k_factor {factor}" if refined else "")


def _faiss_hnsw(rows: int, dim: int, path: Path) -> list[Try]:
    import faiss

    index: Any = faiss.read_index(str(path))

    def at(ef: int) -> Search:
        def search(query: NDArray[np.float32]) -> NDArray[np.int64]:
            index.hnsw.efSearch = ef
            ids = np.asarray(index.search(query.reshape(-1, dim), K)[1])
            return ids if query.ndim == 2 else ids[0]

        return search

    return [Try(setting=f"efSearch {ef}", search=at(ef)) for ef in _EF]


_EF = (16, 32, 64, 128, 256, 512, 1_024)


def _build_usearch(rows: int, dim: int, path: Path) -> None:
    from usearch.index import Index

    index = Index(ndim=dim, metric="cos", dtype="f16")
    for number, block in enumerate(vectors_of(rows, dim)):
        index.add(np.arange(number * BLOCK, number * BLOCK + len(block)), block)
    index.save(str(path))


def _load_usearch(rows: int, dim: int, path: Path) -> list[Try]:
    from usearch.index import Index

    index = Index(ndim=dim, metric="cos", dtype="f16")
    index.load(str(path))

    def at(expansion: int) -> Search:
        def search(query: NDArray[np.float32]) -> NDArray[np.int64]:
            index.expansion_search = expansion
            return np.asarray(index.search(query, K).keys, np.int64)

        return search

    return [Try(setting=f"expansion {ef}", search=at(ef)) for ef in _EF]


def _build_hnswlib(rows: int, dim: int, path: Path) -> None:
    import hnswlib

    index = hnswlib.Index(space="cosine", dim=dim)
    index.init_index(max_elements=rows, ef_construction=128, M=16)
    for number, block in enumerate(vectors_of(rows, dim)):
        index.add_items(block, np.arange(number * BLOCK, number * BLOCK + len(block)))
    index.save_index(str(path))


def _load_hnswlib(rows: int, dim: int, path: Path) -> list[Try]:
    import hnswlib

    index = hnswlib.Index(space="cosine", dim=dim)
    index.load_index(str(path), max_elements=rows)

    def at(ef: int) -> Search:
        def search(query: NDArray[np.float32]) -> NDArray[np.int64]:
            index.set_ef(ef)
            ids = index.knn_query(query, k=K)[0].astype(np.int64)
            return np.asarray(ids if query.ndim == 2 else ids[0])

        return search

    return [Try(setting=f"ef {ef}", search=at(ef)) for ef in _EF]


def _lists(rows: int) -> int:
    return round(math.sqrt(rows))


PEERS = (
    Peer(name="FAISS IVF-SQ8", build=_faiss(lambda rows, dim: f"IVF{_lists(rows)},SQ8"), load=_faiss_ivf),
    Peer(name="usearch HNSW", build=_build_usearch, load=_load_usearch, hnsw=True),
    Peer(name="FAISS HNSW32", build=_faiss(lambda rows, dim: "HNSW32"), load=_faiss_hnsw, hnsw=True),
    Peer(name="hnswlib HNSW", build=_build_hnswlib, load=_load_hnswlib, hnsw=True),
    Peer(
        name="FAISS IVF-PQ, refined",
        build=_faiss(lambda rows, dim: f"IVF{_lists(rows)},PQ{dim // 4}x8,RFlat"),
        load=_faiss_ivf,
    ),
)
