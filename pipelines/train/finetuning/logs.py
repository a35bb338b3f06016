"""Logs of a run: JSONL, TensorBoard, and a plot of loss and recall as PNG and in a page."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from pipelines.store.storage import is_remote
from pipelines.train.finetuning.checkpoints import RunFolder

Row = dict[str, Any]
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>:root{{color-scheme:light dark}}body{{font:16px system-ui;margin:2rem auto;max-width:64rem;padding:0 1rem}}
img{{max-width:100%;background:#fff;border-radius:8px}}table{{border-collapse:collapse}}td,th{{padding:.2rem
.8rem;text-align:right}}</style>
<h1>{title}</h1><img alt="loss and recall by step" src="data:image/png;base64,{plot}">
<table><tr>{head}</tr>{rows}</table></html>
"""
_SHOWN = ("R@1", "R@5", "R@10", "MRR")


def write_logs(folder: RunFolder, history: list[Row]) -> list[str]:
    """Write `log.jsonl`, `training.png`, `training.html`, and TensorBoard's events if the folder is on a disk.

    Args:
        folder: the folder of the run.
        history: rows with `step`, and with `loss` or `validation`.

    Returns:
        URIs of the plot and the page.
    """
    folder.write("log.jsonl", "".join(json.dumps(row) + "\n" for row in history).encode())
    png = plot(history)
    folder.write("training.png", png)
    folder.write("training.html", page(folder.uri.rsplit("/", 1)[-1], png, history).encode())
    if not is_remote(folder.uri):
        _tensorboard(Path(folder.path("tensorboard")), history)
    return [folder.path("training.png"), folder.path("training.html")]


def plot(history: list[Row]) -> bytes:
    """A PNG of loss and recall by step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    losses = [(row["step"], row["loss"]) for row in history if "loss" in row]
    if losses:
        left.plot(*zip(*losses, strict=True), color="tab:blue", linewidth=1.2)
    left.set(title="training loss", xlabel="step")
    validations = [(row["step"], row["validation"]) for row in history if "validation" in row]
    for name in ("R@1", "R@5", "R@10"):
        if validations:
            right.plot([s for s, _ in validations], [m[name] for _, m in validations], marker=".", label=name)
    right.set(title="recall on held-out rows", xlabel="step", ylim=(0, 1))
    if validations:
        right.legend()
    for axis in (left, right):
        axis.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def page(title: str, png: bytes, history: list[Row]) -> str:
    """The plot and the validations as a self-contained HTML page."""
    from html import escape

    rows = [row for row in history if "validation" in row]
    head = "".join(f"<th>{name}</th>" for name in ("step", "epoch", *_SHOWN))
    body = "".join(
        f"<tr><td>{row['step']}</td><td>{row['epoch']:.1f}</td>"
        + "".join(f"<td>{row['validation'][name]:.3f}</td>" for name in _SHOWN)
        + "</tr>"
        for row in rows
    )
    return _PAGE.format(title=escape(title), plot=base64.b64encode(png).decode(), head=head, rows=body)


def _tensorboard(folder: Path, history: list[Row]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    for old in folder.glob("events.*") if folder.is_dir() else []:
        old.unlink()
    with SummaryWriter(str(folder)) as writer:
        for row in history:
            for name in ("loss", "scale", "learning_rate", "gradient_norm"):
                if name in row:
                    writer.add_scalar(f"train/{name}", row[name], row["step"])
            for name, value in row.get("validation", {}).items():
                writer.add_scalar(f"validation/{name.replace('@', '_at_').replace(' ', '/')}", value, row["step"])
