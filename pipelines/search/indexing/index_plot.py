"""Plots the recall-latency curve of an index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.search.indexing.build import BuiltIndex


def plot(built: Sequence[BuiltIndex], path: Path) -> None:
    """Plot recall against latency for each column with a measured vector index; each attempt is a point.

    Args:
        built: the indexes; at least one of them was measured.
        path: the file to write.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    measured = [index for index in built if index.curve]
    figure = Figure(figsize=(6 * len(measured), 4), layout="constrained")
    for axis, index in zip(figure.subplots(1, len(measured), squeeze=False)[0], measured, strict=True):
        lines = dict.fromkeys((p.parameters.type, p.parameters.refine_factor) for p in index.curve)
        if any(kind == "IVF_HNSW_SQ" for kind, _ in lines):
            lines = dict.fromkeys((kind, 0 if kind == "IVF_HNSW_SQ" else refine) for kind, refine in lines)
        for kind, refine in lines:
            points = [p for p in index.curve if p.parameters.type == kind and refine in (0, p.parameters.refine_factor)]
            label = f"{kind}, refine {refine}" if refine else kind
            axis.plot([p.ms for p in points], [p.recall for p in points], "o-", label=label)
        if index.parameters is not None:
            axis.axhline(index.parameters.target, linestyle="--", color="grey", label="target")
        if index.exact_ms is not None:
            axis.axvline(index.exact_ms, linestyle=":", color="grey", label="exact scan")
        axis.set(title=index.column, xlabel="milliseconds a query (median)", ylabel="recall@10", xscale="log")
        axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
