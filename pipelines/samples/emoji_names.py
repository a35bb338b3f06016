"""English and Chinese names of emoji from emojibase, keyed by a canonical form of their code points."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.samples.packages import npm_package, read_package

PACKAGE, VERSION = "emojibase-data", "17.0.0"
_VARIATION = "FE0F"
_SKIN_TONES = frozenset(f"{point:X}" for point in range(0x1F3FB, 0x1F400))


@dataclass(frozen=True, kw_only=True)
class Names:
    """The names of an emoji.

    Attributes:
        english: the English label.
        chinese: the Chinese label.
        tags: English keywords, without the label.
        tags_zh: Chinese keywords, without the label.
        group: emojibase's group, such as `animals-nature`; None if it has none.
    """

    english: str
    chinese: str
    tags: tuple[str, ...]
    tags_zh: tuple[str, ...]
    group: str | None


def concept_code(code: str) -> str:
    """The code points of an emoji in the form that all sets share: upper case, joined by -, no variation selector.

    >>> concept_code("0023-fe0f-20e3")
    '0023-20E3'
    """
    return "-".join(point for point in code.upper().replace("_", "-").split("-") if point != _VARIATION)


def has_skin_tone(concept: str) -> bool:
    """Whether a concept is a drawing in another skin colour, or a sample of such a colour.

    >>> has_skin_tone("1F44B-1F3FD"), has_skin_tone("1F44B")
    (True, False)
    """
    return not _SKIN_TONES.isdisjoint(concept.split("-"))


def fetch_names(cache: Path) -> dict[str, Names]:
    """The names of every emoji, by concept.

    Raises:
        FetchError: the package could not be fetched.
    """
    wanted = [f"package/{name}" for name in ("en/data.json", "zh/data.json", "en/messages.json")]
    files = read_package(npm_package(PACKAGE, VERSION, cache), wanted.__contains__)
    english, chinese, messages = (files[name] for name in wanted)
    return parse_names(english, chinese, messages)


def parse_names(english: bytes, chinese: bytes, messages: bytes) -> dict[str, Names]:
    """Names from emojibase's `data.json` in both languages and its `messages.json`. Emoji must have both names."""
    groups = {group["order"]: group["key"] for group in json.loads(messages)["groups"]}
    zh = {concept_code(entry["hexcode"]): entry for entry in json.loads(chinese)}
    names = {}
    for entry in json.loads(english):
        concept = concept_code(entry["hexcode"])
        other = zh.get(concept)
        if other is not None and entry.get("label") and other.get("label"):
            names[concept] = Names(
                english=entry["label"],
                chinese=other["label"],
                tags=_tags(entry),
                tags_zh=_tags(other),
                group=groups.get(entry.get("group")),
            )
    return names


def _tags(entry: Mapping[str, object]) -> tuple[str, ...]:
    """The tags of an entry without its label, each once."""
    tags = entry.get("tags") or ()
    words = (str(tag).strip() for tag in tags) if isinstance(tags, list) else ()
    return tuple(dict.fromkeys(word for word in words if word and word != entry["label"]))
