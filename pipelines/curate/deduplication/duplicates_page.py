"""An HTML page of groups of duplicates: the kept row, and some of its duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.curate.deduplication.deduplicate import Group
from pipelines.pages.cards import Card, CardSection, picture_uri, write_cards
from pipelines.rows.contract import CAPTION, IMAGE_URI, ROW_ID, THUMBNAIL
from pipelines.store.storage import Storage, TableRef
from pipelines.tables.filters import quote
from pipelines.tables.opening import open_dataset

_SHOWN = 11


def write_groups(path: str | Path, table: TableRef, groups: Sequence[Group], storage: Storage) -> Path:
    """Write the page.

    Args:
        path: the file to write.
        table: the table.
        groups: the groups to show; of a large group, its most and its least similar rows.
        storage: how to reach the pictures of rows that have no thumbnail in the table.

    Returns:
        The path of the file.
    """
    sections = []
    for group in groups:
        pairs = list(zip(group.duplicates, group.scores, strict=True))
        shown = pairs if len(pairs) <= _SHOWN else [*pairs[: _SHOWN // 2], *pairs[-(_SHOWN - _SHOWN // 2) :]]
        scores = {group.row_id: "kept", **{row_id: f"{score:.3f}" for row_id, score in shown}}
        subtitle = f"{len(pairs):,} duplicates" + (f", {len(shown)} of them shown" if len(shown) < len(pairs) else "")
        cards = _cards(table, scores, storage)
        sections.append(CardSection(title=group.row_id, subtitle=subtitle, cards=cards))
    return write_cards(path, f"{table.name}: duplicates", sections)


def _cards(table: TableRef, scores: dict[str, str], storage: Storage) -> list[Card]:
    dataset = open_dataset(table)
    thumbnails = [THUMBNAIL] if THUMBNAIL in dataset.schema.names else []
    wanted = f"{ROW_ID} IN ({', '.join(quote(row_id) for row_id in scores)})"
    rows = dataset.to_table(columns=[ROW_ID, CAPTION, IMAGE_URI, *thumbnails], filter=wanted).to_pylist()
    by_id = {row[ROW_ID]: row for row in rows}
    return [
        Card(
            row_id=row_id,
            caption=by_id[row_id][CAPTION],
            score=score,
            picture=(picture := picture_uri(by_id[row_id].get(THUMBNAIL), by_id[row_id][IMAGE_URI], storage)),
            missing=None if picture or not by_id[row_id][IMAGE_URI] else "picture not readable",
            facts=[],
        )
        for row_id, score in scores.items()
    ]
