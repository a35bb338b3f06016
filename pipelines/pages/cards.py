"""One self-contained HTML page of search results: thumbnails, captions, scores. No script, no request."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encoders.images import ImageError, thumbnail
from pipelines.rows.contract import CAPTION, IMAGE_URI, ITEM_ID, ROW_ID, THUMBNAIL
from pipelines.rows.hits import SCORE, Hits
from pipelines.sources.locate import read_images
from pipelines.store.storage import Storage

_SIDE = 240
_SHOWN_ELSEWHERE = (ROW_ID, ITEM_ID, CAPTION, IMAGE_URI, SCORE)


@dataclass(frozen=True, kw_only=True)
class Section:
    """One query and its hits.

    Attributes:
        title: the query, in words.
        hits: the rows that the search returned.
        picture: the query's own picture, if the query was a picture.
    """

    title: str
    hits: Hits
    picture: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Card:
    """A row on a page.

    Attributes:
        row_id: the row's id.
        caption: its caption; None if it has none.
        score: a line about it: its score, or what is wrong with it.
        picture: its picture as a data URI; None if there is none to show.
        missing: why there is no picture.
        facts: (name, value) pairs shown below.
    """

    row_id: str
    caption: str | None
    score: str
    picture: str | None
    missing: str | None
    facts: list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class CardSection:
    """A heading, a line below it, cards, and optionally a picture beside the heading.

    Attributes:
        title: the heading.
        subtitle: the line below it.
        cards: the cards, in order.
        picture: a data URI; None for no picture.
    """

    title: str
    subtitle: str
    cards: list[Card]
    picture: str | None = None


def write_page(path: str | Path, title: str, sections: Sequence[Section], storage: Storage, note: str = "") -> Path:
    """Write a page of search results.

    Args:
        path: the file to write.
        title: the page's title.
        sections: queries with their hits.
        storage: how to reach the pictures of rows that have no thumbnail in the table.
        note: a line at the foot of the page, such as an attribution.
    """
    shown = [
        CardSection(
            title=section.title,
            subtitle=f"{section.hits.rows.num_rows} of {section.hits.column}, "
            + ("compared with every row" if section.hits.exact else "through the index"),
            cards=_cards(section.hits, storage),
            picture=_as_data_uri(section.picture) if section.picture else None,
        )
        for section in sections
    ]
    return write_cards(path, title, shown, note)


def write_cards(path: str | Path, title: str, sections: Sequence[CardSection], note: str = "") -> Path:
    """Write a page of cards. All text on it is escaped.

    Args:
        path: the file to write.
        title: the page's title.
        sections: headings with their cards.
        note: a line at the foot of the page.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("pipelines.pages", "."), autoescape=True)
    template = environment.get_template("cards.html.j2")
    target = Path(path)
    target.write_text(template.render(title=title, sections=sections, note=note), encoding="utf-8")
    return target


def _cards(hits: Hits, storage: Storage) -> list[Card]:
    rows = hits.to_list()
    captions = hits.pictures[CAPTION].to_pylist()
    pictures = _pictures(hits, storage)
    return [
        Card(
            row_id=str(row[ROW_ID]),
            caption=caption,
            score=f"{row[SCORE]:.3f}",
            picture=picture if picture and picture.startswith("data:") else None,
            missing=None if picture and picture.startswith("data:") else picture,
            facts=[(k, _short(v)) for k, v in row.items() if k not in _SHOWN_ELSEWHERE and v not in (None, [], "")],
        )
        for row, caption, picture in zip(rows, captions, pictures, strict=True)
    ]


def _pictures(hits: Hits, storage: Storage) -> list[str | None]:
    """Per row a data URI, or why there is none; None for a row without a picture."""
    kept = hits.pictures[THUMBNAIL].to_pylist() if THUMBNAIL in hits.pictures.column_names else []
    kept = kept or [None] * hits.pictures.num_rows
    uris = hits.pictures[IMAGE_URI].to_pylist()
    wanted = [uri for uri, data in zip(uris, kept, strict=True) if data is None and uri]
    read = dict(zip(wanted, read_images(wanted, storage), strict=True))
    shown: list[str | None] = []
    for uri, data in zip(uris, kept, strict=True):
        found = data if data is not None else read.get(uri)
        shown.append(_show(found))
    return shown


def _show(found: bytes | Exception | None) -> str | None:
    if found is None:
        return None
    if isinstance(found, Exception):
        return f"picture not readable: {type(found).__name__}"
    try:
        return _as_data_uri(found)
    except ImageError as error:
        return f"picture not readable: {error}"


def picture_uri(thumbnail_bytes: bytes | None, image_uri: str | None, storage: Storage) -> str | None:
    """A row's picture as a data URI, from its thumbnail or else its file; None if neither can be read."""
    found = (
        thumbnail_bytes
        if thumbnail_bytes is not None
        else (read_images([image_uri], storage)[0] if image_uri else None)
    )
    shown = _show(found)
    return shown if shown is not None and shown.startswith("data:") else None


def _as_data_uri(data: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(thumbnail(data, _SIDE)).decode()


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 80 else text[:79] + "…"
