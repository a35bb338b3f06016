"""Emoji of Google and Twitter as corpora: about 1,900 concepts, each drawn once in 64 pixels, named in two languages.

The drawings come from the npm packages `emoji-datasource-google` (Apache-2.0) and `emoji-datasource-twitter` (CC BY
4.0), the names and tags from `emojibase-data` (MIT). The `-apple` and `-facebook` packages do not have an open licence.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.samples.emoji_names import Names, concept_code, fetch_names, has_skin_tone
from pipelines.samples.names import Captions
from pipelines.samples.packages import npm_package, read_package
from pipelines.samples.rendering import UnusablePicture, encode, on_white
from pipelines.samples.table import CorpusInfo, Progress, captions_of, first_by_key, no_progress, shuffled, write_corpus

VERSION = "16.0.0"
_SIDE = 64
_INDEX = "package/emoji.json"
_NAMES_NOTICE = """
Names and tags: emojibase-data, Copyright (c) 2017-2019 Miles Johnson, MIT License, after the Unicode Common Locale
Data Repository. Packaging of the pictures: emoji-data, Copyright (c) 2013 Cal Henderson, MIT License.
Changes: transparent parts were made white; skin-tone variants were left out.
"""


@dataclass(frozen=True, kw_only=True)
class EmojiSet:
    """A set of drawings with an open licence.

    Attributes:
        name: the set's name in the npm package, `google` or `twitter`.
        license: short name of the licence.
        attribution: the text that the licence requires.
    """

    name: str
    license: str
    attribution: str

    @property
    def package(self) -> str:
        """The set's npm package."""
        return f"emoji-datasource-{self.name}"

    @property
    def notice(self) -> str:
        """The notice that is stored beside its pictures."""
        return self.attribution + "\n" + _NAMES_NOTICE


GOOGLE = EmojiSet(
    name="google",
    license="Apache-2.0",
    attribution="The pictures in this folder are Noto Emoji, Copyright Google Inc., licensed under the Apache\n"
    "License, Version 2.0 (https://www.apache.org/licenses/LICENSE-2.0).",
)
TWITTER = EmojiSet(
    name="twitter",
    license="CC BY 4.0",
    attribution="The pictures in this folder are Twemoji, Copyright Twitter, Inc. and other contributors, licensed\n"
    "under CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/).",
)
SETS = {emoji_set.name: emoji_set for emoji_set in (GOOGLE, TWITTER)}


def build(
    folder: Path,
    emoji_set: EmojiSet,
    *,
    cache: Path,
    pictures: int | None = None,
    captions: Captions = "label",
    seed: int = 0,
    progress: Progress = no_progress,
) -> CorpusInfo:
    """Write a set of emoji into `emoji-NAME.parquet` in a folder, with the attribution beside it.

    Args:
        folder: output folder; created if missing.
        emoji_set: `GOOGLE` or `TWITTER`.
        cache: folder of fetched packages; packages in it are not fetched again.
        pictures: number of pictures, drawn at random; None for all.
        captions: `label`, or `label+tags` to add the tags as further captions.
        seed: seed of the random draw.
        progress: called with (pictures written, pictures in all).

    Raises:
        FetchError: npm is missing, or could not fetch a package.
    """
    dropped: Counter[str] = Counter()
    names = fetch_names(cache)
    images = _read_images(npm_package(emoji_set.package, VERSION, cache), emoji_set, dropped)
    order = shuffled(images, pictures, seed)
    rows = _rows(((concept, images[concept]) for concept in order), names, emoji_set.name, captions, dropped)
    return write_corpus(
        folder / f"emoji-{emoji_set.name}.parquet",
        first_by_key(rows, pictures),
        notice=emoji_set.notice,
        license=emoji_set.license,
        dropped=dropped,
        total=min(pictures or len(images), len(images)),
        progress=progress,
    )


def wanted_files(index: bytes, set_name: str, dropped: Counter[str]) -> dict[str, str]:
    """{picture's file name: concept} for the entries of a package's `emoji.json` without a skin tone.

    An emoji that the set has not drawn is left out, because drawings with other licences may take its place.
    """
    files = {}
    for entry in json.loads(index):
        concept = concept_code(entry["unified"])
        if has_skin_tone(concept):
            dropped["skin_tone"] += 1
        elif not entry.get(f"has_img_{set_name}"):
            dropped["not_drawn"] += 1
        else:
            files[entry["image"]] = concept
    return files


def _read_images(package: Path, emoji_set: EmojiSet, dropped: Counter[str]) -> dict[str, bytes]:
    """{concept: PNG} of a package, ordered by concept."""
    folder = f"package/img/{emoji_set.name}/{_SIDE}/"
    files = read_package(package, lambda name: name == _INDEX or name.startswith(folder))
    wanted = wanted_files(files[_INDEX], emoji_set.name, dropped)
    found = {concept: files[folder + name] for name, concept in wanted.items() if folder + name in files}
    dropped["no_picture"] += len(wanted) - len(found)
    return dict(sorted(found.items()))


def _rows(
    images: Iterable[tuple[str, bytes]],
    names: Mapping[str, Names],
    source: str,
    captions: Captions,
    dropped: Counter[str],
) -> Iterator[dict[str, Any]]:
    for concept, data in images:
        named = names.get(concept)
        if named is None:
            dropped["no_name"] += 1
            continue
        try:
            image = encode(on_white(data), "PNG")
        except UnusablePicture as error:
            dropped[error.reason] += 1
            continue
        yield {
            "key": f"{source}-{concept}",
            "item": f"{source}:{concept}",
            "concept": concept,
            "source": source,
            "image": image,
            "caption": captions_of([named.english, named.chinese], named.tags, named.tags_zh, captions),
            "keywords": named.tags,
            "keywords_zh": named.tags_zh,
            "group": named.group,
        }
