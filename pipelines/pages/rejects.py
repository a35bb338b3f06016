"""One self-contained HTML page of rejected rows: each reject's message, and what its picture's file really holds."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from encoders.images.kinds import container, looks_like
from pipelines.ledger.reading import RejectsSummary
from pipelines.pages.cards import Card, CardSection, write_cards
from pipelines.rows.contract import CAPTION, ROW_ID
from pipelines.sources.locate import read_images
from pipelines.store.storage import Storage

_MOST_BYTES = 256 << 10
_MIME = {"JPEG": "jpeg", "PNG": "png", "GIF": "gif", "WebP": "webp", "AVIF": "avif"}
# A browser would handle these no better than our own decoder did.
_NOT_SHOWN = ("timeout", "decoder_crashed", "too_many_pixels")


def write_rejects_page(path: str | Path, table: str, summary: RejectsSummary, storage: Storage) -> Path:
    """Write a page with a section per reason and the rows that the summary lists.

    Pictures are not decoded here. Small ones go to the browser as they are; it shows as much of a truncated picture as
    there is.

    Args:
        path: the file to write.
        table: the table's name, for the title.
        summary: counts and rows, as returned by `read_rejects`.
        storage: how to reach the corpus' pictures.
    """
    listed: dict[str, list[dict[str, Any]]] = {reason: [] for reason in summary.by_reason}
    for row in summary.rows:
        listed[row["reason"]].append(row)
    sections = [
        CardSection(
            title=reason,
            subtitle=f"{len(rows):,} of {summary.by_reason[reason]:,} rows",
            cards=_cards(rows, storage),
        )
        for reason, rows in listed.items()
        if rows
    ]
    total = sum(summary.by_reason.values())
    return write_cards(path, f"{table}: {total:,} rejected rows", sections)


def _cards(rows: Sequence[dict[str, Any]], storage: Storage) -> list[Card]:
    sources = [row["source"] for row in rows]
    wanted = [source for source in sources if source]
    read = dict(zip(wanted, read_images(wanted, storage), strict=True))
    return [_card(row, read.get(source)) for row, source in zip(rows, sources, strict=True)]


def _short(source: str | None) -> str:
    """The last part of a path: the folder is the same for most rows."""
    return source.rsplit("/", 1)[-1] if source else "none"


def _card(row: dict[str, Any], data: bytes | Exception | None) -> Card:
    shown, missing = None, None
    facts = [("stage", str(row["stage"])), ("attempts", str(row["attempt"])), ("source", _short(row["source"]))]
    if isinstance(data, bytes):
        kind = container(data)
        facts.append(("file", f"{len(data):,} bytes" + (f", {kind}" if kind else "")))
        if kind in _MIME and len(data) <= _MOST_BYTES and row["reason"] not in _NOT_SHOWN:
            shown = f"data:image/{_MIME[kind]};base64," + base64.b64encode(data).decode()
        else:
            missing = f"{kind}, not shown" if kind else looks_like(data)
    elif isinstance(data, Exception):
        missing = f"not readable: {type(data).__name__}"
    return Card(
        row_id=str(row[ROW_ID]),
        caption=row[CAPTION],
        score=row["message"],
        picture=shown,
        missing=missing,
        facts=facts,
    )
