"""The exploration as a self-contained HTML page: a map with pictures on hover, clusters, and galleries of oddities."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from encoders.images import ImageError, thumbnail
from pipelines.curate.exploration.explore import Explored
from pipelines.curate.exploration.mapping import NOISE
from pipelines.pages.cards import Card, CardSection, picture_uri
from pipelines.rows.contract import CAPTION, IMAGE_URI, ROW_ID, THUMBNAIL
from pipelines.sources.locate import read_images
from pipelines.store.storage import Storage

_SIDE = 72
_GROUPS, _OF_A_GROUP = 6, 8
_CAPTION = 120
_GREY = "#9b9ba1"
_TOOLTIP = """
<div style="max-width:15rem;font:13px system-ui">
  <img src="@picture" alt="" style="max-width:96px;max-height:96px;border-radius:6px;background:#fff">
  <div style="font-weight:600">@caption</div><div>@cluster</div><div style="opacity:.7">@row_id</div>
</div>"""


def write_map(path: str | Path, explored: Explored, found: int, storage: Storage) -> Path:
    """Write the page.

    Args:
        path: the file to write.
        explored: the results to show.
        found: number of outliers to show.
        storage: how to reach the pictures of rows that have no thumbnail in the table.

    Returns:
        The path of the file.

    Raises:
        ModuleNotFoundError: the extra `explore` is not installed.
    """
    try:
        from bokeh.embed import components
        from bokeh.resources import INLINE
    except ModuleNotFoundError:
        raise ModuleNotFoundError("isthmus explore needs more packages: pip install 'isthmus[explore]'") from None
    from jinja2 import ChoiceLoader, Environment, PackageLoader

    loaders = [PackageLoader("pipelines.curate.exploration", "."), PackageLoader("pipelines.pages", ".")]
    environment = Environment(loader=ChoiceLoader(loaders), autoescape=True)
    script, div = components(_figure(explored, storage))
    page = environment.get_template("explore.html.j2").render(
        title=f"{explored.table.name}: a look over {len(explored.sample):,} rows",
        facts=_facts(explored),
        resources=INLINE.render(),
        map=div,
        script=script,
        clusters=explored.clusters,
        sections=_sections(explored, found, storage),
        note="",
    )
    target = Path(path)
    target.write_text(page, encoding="utf-8")
    return target


def _facts(explored: Explored) -> str:
    kind = "pictures" if explored.modality == "image" else "captions"
    noise = int((explored.cluster == NOISE).sum())
    facts = [
        f"{len(explored.sample):,} of {explored.sample.total:,} rows by their {kind}, version {explored.version}",
        f"{len(explored.clusters)} clusters, {noise:,} rows between them",
    ]
    if explored.mismatched is not None and explored.mismatched.pairs:
        facts.append(f"mean cosine of picture and caption {explored.mismatched.mean:.3f}")
    return "; ".join(facts) + "."


def _figure(explored: Explored, storage: Storage) -> Any:
    from bokeh.models import ColumnDataSource, HoverTool
    from bokeh.palettes import Category20_20
    from bokeh.plotting import figure

    names = {cluster.number: cluster.name for cluster in explored.clusters}
    rows = explored.sample.rows
    source = ColumnDataSource(
        {
            "x": explored.points[:, 0],
            "y": explored.points[:, 1],
            "color": [_GREY if n == NOISE else Category20_20[n % 20] for n in explored.cluster.tolist()],
            "alpha": np.where(explored.cluster == NOISE, 0.35, 0.85),
            "caption": [_short(caption) for caption in rows[CAPTION].to_pylist()],
            "cluster": [_short(names.get(n)) for n in explored.cluster.tolist()],
            "row_id": rows[ROW_ID].to_pylist(),
            "picture": _small_pictures(rows, storage),
        }
    )
    plot = figure(
        sizing_mode="stretch_width",
        height=620,
        tools="pan,wheel_zoom,box_zoom,reset",
        active_scroll="wheel_zoom",
        match_aspect=True,
        background_fill_alpha=0,
        border_fill_alpha=0,
        outline_line_color=None,
    )
    plot.axis.visible = False
    plot.grid.visible = False
    points = plot.scatter("x", "y", source=source, size=7, color="color", alpha="alpha", line_color=None)
    plot.add_tools(HoverTool(renderers=[points], tooltips=_TOOLTIP, point_policy="snap_to_data", limit=3))
    return plot


def _small_pictures(rows: pa.Table, storage: Storage) -> list[str]:
    """A data URI of each row's picture; an empty string if there is none or it cannot be read."""
    kept = rows[THUMBNAIL].to_pylist() if THUMBNAIL in rows.column_names else [None] * rows.num_rows
    uris = rows[IMAGE_URI].to_pylist()
    wanted = list(dict.fromkeys(uri for uri, data in zip(uris, kept, strict=True) if data is None and uri))
    read = dict(zip(wanted, read_images(wanted, storage), strict=True))
    shown = []
    for uri, data in zip(uris, kept, strict=True):
        found = data if data is not None else read.get(uri)
        try:
            small = thumbnail(found, _SIDE) if isinstance(found, bytes) else None
        except ImageError:
            small = None
        shown.append("data:image/jpeg;base64," + base64.b64encode(small).decode() if small else "")
    return shown


def _sections(explored: Explored, found: int, storage: Storage) -> list[CardSection]:
    rows = explored.sample.rows
    sections = []
    if explored.mismatched is not None and explored.mismatched.rows.num_rows:
        worst = explored.mismatched.rows
        scores = [f"cosine {score:.3f}" for score in worst["score"].to_pylist()]
        subtitle = f"the lowest cosines of picture and caption among all {explored.mismatched.pairs:,} pairs"
        sections.append(CardSection(title="Mismatched pairs", subtitle=subtitle, cards=_cards(worst, scores, storage)))
    outliers = explored.outliers(found)
    scores = [f"distance {explored.outlierness[row]:.3f}" for row in outliers]
    cards = _cards(rows.take(pa.array(outliers, pa.int64())), scores, storage)
    subtitle = "the rows of the map that are farthest from their nearest ten in the whole table"
    sections.append(CardSection(title="Outliers", subtitle=subtitle, cards=cards))
    groups = explored.groups()
    for group in groups[:_GROUPS]:
        shown = group[:_OF_A_GROUP]
        marks = ["kept", *("near-duplicate" for _ in shown[1:])]
        cards = _cards(rows.take(pa.array(shown, pa.int64())), marks, storage)
        subtitle = f"{len(group)} rows; `isthmus dedup` marks those of the whole table"
        sections.append(CardSection(title=f"Near-duplicates of {cards[0].row_id}", subtitle=subtitle, cards=cards))
    return sections


def _cards(rows: pa.Table, scores: Sequence[str], storage: Storage) -> list[Card]:
    cards = []
    for row, score in zip(rows.to_pylist(), scores, strict=True):
        picture = picture_uri(row.get(THUMBNAIL), row[IMAGE_URI], storage)
        missing = None if picture or not row[IMAGE_URI] else "picture not readable"
        cards.append(
            Card(row_id=row[ROW_ID], caption=row[CAPTION], score=score, picture=picture, missing=missing, facts=[])
        )
    return cards


def _short(text: str | None) -> str:
    text = text or ""
    return text if len(text) <= _CAPTION else text[: _CAPTION - 1] + "…"
