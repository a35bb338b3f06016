"""Open Clip Art as a corpus: about 6,800 drawings in the public domain, with titles and keywords in English.

The pictures come from the Debian package `openclipart-png`, their titles and keywords from the metadata inside the same
drawings of `openclipart-svg`. Many titles name a series of drawings. `concept` keeps a series together, and the key,
which is the drawing's path, is often more specific than its title.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.samples.names import Captions
from pipelines.samples.packages import debian_package, open_debian
from pipelines.samples.rendering import UnusablePicture, encode, on_white, pixel_digest
from pipelines.samples.svg_metadata import Metadata, concept_of, parse_metadata
from pipelines.samples.table import CorpusInfo, Progress, captions_of, first_by_key, no_progress, shuffled, write_corpus

SOURCE = "openclipart"
LICENSE = "Public domain"
_ROOT = "usr/share/openclipart"
_NOTICE = """The pictures in this folder are from the Open Clip Art Library (openclipart.org), as packaged by Debian
(openclipart-png, openclipart-svg). Their authors dedicated them to the public domain.
Changes: transparent parts were made white; pictures of more than 512 pixels were made smaller.
"""
_THREADS = 2
_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A picture of the package.

    Attributes:
        key: the first of its paths that has a title, without folder and suffix.
        member: the tar member that holds its content.
        metadata: the SVG's metadata under that path.
    """

    key: str
    member: str
    metadata: Metadata


def build(
    folder: Path,
    *,
    cache: Path,
    pictures: int | None = None,
    captions: Captions = "label",
    seed: int = 0,
    progress: Progress = no_progress,
) -> CorpusInfo:
    """Write the clip arts into `openclipart.parquet` in a folder, with the attribution beside it.

    Args:
        folder: output folder; created if missing.
        cache: folder of fetched packages; packages in it are not fetched again.
        pictures: number of pictures, drawn at random; None for all.
        captions: `label` (the title), or `label+tags` to add the keywords as a further caption.
        seed: seed of the random draw.
        progress: called with (pictures written, pictures in all, if known).

    Raises:
        FetchError: apt-get or dpkg-deb is missing, or could not fetch or read a package.
    """
    svg, png = (debian_package(f"openclipart-{kind}", cache) for kind in ("svg", "png"))
    metadata = read_metadata(svg)
    dropped: Counter[str] = Counter()
    with open_debian(png) as tar, ThreadPoolExecutor(_THREADS) as pool:
        drawings = list_drawings(paths_of(tar, "png"), metadata, dropped)
        rows = _distinct(_decoded(tar, shuffled(drawings, pictures, seed), pool), captions, dropped)
        return write_corpus(
            folder / "openclipart.parquet",
            first_by_key(rows, pictures),
            notice=_NOTICE,
            license=LICENSE,
            dropped=dropped,
            total=pictures,
            progress=progress,
        )


def paths_of(tar: tarfile.TarFile, kind: str) -> dict[str, str]:
    """{path without folder and suffix: the member that holds its content}, in the order of the paths.

    Many drawings are filed under several paths, as links to one file.
    """
    root, suffix = f"{_ROOT}/{kind}/", f".{kind}"
    members = {posixpath.normpath(member.name): member for member in tar}
    found = {}
    for name in sorted(members):
        if not (name.startswith(root) and name.endswith(suffix)):
            continue
        target = _follow(name, members)
        if target is not None:
            found[name.removeprefix(root).removesuffix(suffix)] = members[target].name
    return found


def _follow(name: str, members: Mapping[str, tarfile.TarInfo]) -> str | None:
    """The regular file that a path leads to; None if it leads nowhere."""
    for _ in range(len(members)):
        member = members.get(name)
        if member is None or member.isreg():
            return name if member else None
        if member.islnk():
            name = posixpath.normpath(member.linkname)
        elif member.issym():
            name = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
        else:
            return None
    return None


def read_metadata(package: Path) -> dict[str, Metadata]:
    """{path without folder and suffix: metadata of the SVG there}."""
    with open_debian(package) as tar:
        paths = paths_of(tar, "svg")
        read = {member: parse_metadata(_content(tar, member)) for member in sorted(set(paths.values()))}
    return {path: read[member] for path, member in paths.items()}


def list_drawings(paths: Mapping[str, str], metadata: Mapping[str, Metadata], dropped: Counter[str]) -> list[Drawing]:
    """One drawing per picture file, named by the first of its paths that has a title.

    Args:
        paths: paths of the pictures, as returned by `paths_of`.
        metadata: metadata for these paths, as returned by `read_metadata`.
        dropped: counts `link` (a further path of a drawing), `no_title` and `other_license` are added to it.
    """
    by_member: dict[str, list[str]] = defaultdict(list)
    for path, member in paths.items():
        by_member[member].append(path)
    drawings = []
    for member, same in by_member.items():
        dropped["link"] += len(same) - 1
        known = [path for path in same if path in metadata]
        key = next((path for path in known if metadata[path].title), None)
        if key is None:
            dropped["no_title"] += 1
        elif not all(metadata[path].public_domain for path in known):
            dropped["other_license"] += 1
        else:
            drawings.append(Drawing(key=key, member=member, metadata=metadata[key]))
    return sorted(drawings, key=lambda drawing: drawing.key)


def _decoded(
    tar: tarfile.TarFile, drawings: Iterable[Drawing], pool: ThreadPoolExecutor
) -> Iterator[tuple[Drawing, str, bytes | UnusablePicture]]:
    """(drawing, digest of its pixels, JPEG or why there is none), in order. Only one thread reads the tar."""
    remaining = iter(drawings)
    while batch := list(islice(remaining, _BATCH)):
        contents = [_content(tar, drawing.member) for drawing in batch]
        for drawing, (digest, image) in zip(batch, pool.map(_convert, contents), strict=True):
            yield drawing, digest, image


def _convert(data: bytes) -> tuple[str, bytes | UnusablePicture]:
    try:
        image = on_white(data)
    except UnusablePicture as error:
        return "", error
    return pixel_digest(image), encode(image, "JPEG")


def _distinct(
    decoded: Iterable[tuple[Drawing, str, bytes | UnusablePicture]], captions: Captions, dropped: Counter[str]
) -> Iterator[dict[str, Any]]:
    """The rows of usable pictures, each picture once."""
    seen: set[str] = set()
    for drawing, digest, image in decoded:
        if isinstance(image, UnusablePicture):
            dropped[image.reason] += 1
        elif digest in seen:
            dropped["same_picture"] += 1
        else:
            seen.add(digest)
            yield _row(drawing, image, captions)


def _row(drawing: Drawing, image: bytes, captions: Captions) -> dict[str, Any]:
    told = drawing.metadata
    return {
        "key": drawing.key,
        "item": f"{SOURCE}:{drawing.key}",
        "concept": concept_of(told.title),
        "source": SOURCE,
        "image": image,
        "caption": captions_of([told.title], told.keywords, (), captions),
        "keywords": told.keywords,
        "keywords_zh": (),
        "group": drawing.key.partition("/")[0],
    }


def _content(tar: tarfile.TarFile, member: str) -> bytes:
    stream = tar.extractfile(member)
    if stream is None:
        raise ValueError(f"{member}: not a regular file of the package")
    return stream.read()
