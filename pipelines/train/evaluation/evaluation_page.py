"""An evaluation as Markdown, and as a self-contained HTML page with plots and the best and worst queries."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.rows.contract import CAPTION, IMAGE_URI, IMAGE_VECTOR, ITEM_ID, ROW_ID, TEXT_VECTOR, THUMBNAIL
from pipelines.store.storage import Storage, TableRef
from pipelines.tables.filters import quote
from pipelines.tables.opening import open_at
from pipelines.train.evaluation.evaluate import Evaluation

_METRICS = ("R@1", "R@5", "R@10", "MRR", "mAP", "nDCG@10", "mean_rank", "median_rank")
_CHOSEN = 6
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Page:
    """Contents of a report: an evaluation, another one to compare it with, further facts by heading, and a note."""

    evaluation: Evaluation
    other: Evaluation | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    note: str = ""


def markdown(page: Page) -> str:
    """The tables of the report as Markdown."""
    lines = [f"# {page.evaluation.table} at version {page.evaluation.version}", ""]
    for evaluation in filter(None, (page.evaluation, page.other)):
        lines += [f"## {evaluation.encoder} ({evaluation.table})", ""]
        lines += ["| direction | queries | gallery | " + " | ".join(_METRICS) + " | R@10 by chance |"]
        lines += ["|---" * (len(_METRICS) + 4) + "|"]
        for name, result in evaluation.directions.items():
            cells = [_cell(metric, result.metrics, result.intervals) for metric in _METRICS]
            row = [name.replace("_", " "), str(result.queries), str(result.gallery), *cells, f"{result.chance:.4f}"]
            lines.append(f"| {' | '.join(row)} |")
        lines.append("")
    for name, value in page.extra.items():
        lines += [f"## {name.replace('_', ' ')}", "", *(f"* {k}: {_fact(v)}" for k, v in value.items()), ""]
    return "\n".join(lines)


def html(page: Page, ref: TableRef, storage: Storage) -> str:
    """The HTML page: plots, tables, and text → image queries with the pictures that they found."""
    from jinja2 import Environment, PackageLoader

    template = Environment(loader=PackageLoader("pipelines.train.evaluation", "."), autoescape=True).get_template(
        "report.html.j2"
    )
    both = [e for e in (page.evaluation, page.other) if e is not None]
    return template.render(
        title=f"{ref.name}: retrieval",
        evaluations=[
            {
                "name": f"{e.encoder} · {e.table}@{e.version}",
                "rows": [
                    {
                        "direction": name.replace("_", " "),
                        "queries": result.queries,
                        "gallery": result.gallery,
                        "chance": f"{result.chance:.4f}",
                        "cells": [_cell(metric, result.metrics, result.intervals) for metric in _METRICS],
                    }
                    for name, result in e.directions.items()
                ],
            }
            for e in both
        ],
        metrics=_METRICS,
        plot=base64.b64encode(plot(both)).decode(),
        examples=_examples(page.evaluation, ref, storage),
        extra={
            k.replace("_", " "): {name.replace("_", " "): _fact(v) for name, v in facts.items()}
            for k, facts in page.extra.items()
        },
        note=page.note,
    )


def plot(evaluations: list[Evaluation]) -> bytes:
    """A PNG of the recall@K curves and, for the first evaluation, the ranks of the first positives."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    colours = {"text_to_image": "tab:blue", "image_to_text": "tab:orange", "image_to_image": "tab:green"}
    for style, evaluation in zip(("-", "--"), evaluations, strict=False):
        for name, result in evaluation.directions.items():
            curve = result.curve()
            label = f"{name.replace('_', ' ')} ({evaluation.encoder})"
            left.plot(range(1, len(curve) + 1), curve, style, color=colours[name], label=label)
            if style == "-" and name == "text_to_image":
                chance = [min(1.0, k * result.chance / 10) for k in range(1, len(curve) + 1)]
                left.plot(range(1, len(curve) + 1), chance, ":", color="grey", label="chance, text to image")
    left.set(title="recall@K", xlabel="K", ylim=(0, 1))
    left.legend(fontsize=7)
    for name, result in evaluations[0].directions.items():
        bins = np.unique(np.geomspace(1, max(2, result.gallery), 24).round())
        right.hist(result.best_ranks, bins=bins, histtype="step", color=colours[name], label=name.replace("_", " "))
    right.set(title="rank of the first right answer", xlabel="rank", xscale="log")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def write(path: Path, text: str) -> str:
    """Write a report to a file; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def _cell(metric: str, metrics: dict[str, float], intervals: dict[str, tuple[float, float]]) -> str:
    value = metrics[metric]
    if metric not in intervals:
        return f"{value:.1f}"
    low, high = intervals[metric]
    return f"{value:.3f} ({low:.3f}–{high:.3f})"


def _fact(value: Any) -> str:
    """A value in words; for a difference, its mean, interval and p-value."""
    if isinstance(value, dict) and {"mean", "low", "high", "p_value"} <= set(value):
        return f"{value['mean']:+.3f} ({value['low']:+.3f} to {value['high']:+.3f}), p = {value['p_value']:.4f}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_fact(inner)}" for name, inner in value.items())
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _examples(evaluation: Evaluation, ref: TableRef, storage: Storage) -> list[dict[str, Any]]:
    """The best and the worst text → image queries, each with its own picture and the first ones found."""
    result = evaluation.directions.get("text_to_image")
    if result is None:
        return []
    order = np.argsort(result.best_ranks, kind="stable")
    best = order[np.linspace(0, max((result.best_ranks == 1).sum() - 1, 0), _CHOSEN).astype(int)]
    chosen = [*dict.fromkeys(best.tolist()), *dict.fromkeys(order[::-1][:_CHOSEN].tolist())]
    return [
        _example(evaluation, ref, storage, result.query_ids[i], int(result.best_ranks[i]))
        for i in dict.fromkeys(chosen)
    ]


def _example(evaluation: Evaluation, ref: TableRef, storage: Storage, row_id: str, rank: int) -> dict[str, Any]:
    dataset = open_at(ref, evaluation.version)
    extra = [THUMBNAIL] if THUMBNAIL in dataset.schema.names else []
    columns = [ROW_ID, ITEM_ID, CAPTION, IMAGE_URI, *extra]
    own = (
        dataset.scanner(columns=[*columns, TEXT_VECTOR], filter=f"{ROW_ID} = {quote(row_id)}").to_table().to_pylist()[0]
    )
    wheres = [f"({w})" for w in (evaluation.settings.where, evaluation.settings.gallery_where) if w]
    found = dataset.scanner(
        columns=[*columns, "_distance"],
        nearest={
            "column": IMAGE_VECTOR,
            "q": np.array(own[TEXT_VECTOR], np.float32),
            "k": _SHOWN * 8,
            "metric": "cosine",
            "use_index": False,
        },
        filter=" OR ".join(wheres) or None,
        prefilter=True,
    ).to_table()
    distinct = {row[ITEM_ID]: row for row in reversed(found.sort_by("_distance").to_pylist())}
    hits = sorted(distinct.values(), key=lambda row: row["_distance"])[:_SHOWN]
    return {
        "caption": own[CAPTION],
        "rank": rank,
        "own": _picture(own, storage),
        "hits": [
            {
                "caption": hit[CAPTION],
                "score": f"{1 - hit['_distance']:.2f}",
                "picture": _picture(hit, storage),
                "right": hit[ITEM_ID] == own[ITEM_ID],
            }
            for hit in hits
        ],
    }


def _picture(row: dict[str, Any], storage: Storage) -> str | None:
    from pipelines.pages.cards import picture_uri

    return picture_uri(row.get(THUMBNAIL), row.get(IMAGE_URI), storage)
