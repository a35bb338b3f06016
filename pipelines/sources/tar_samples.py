"""The samples of a tar, read as a stream: consecutive members that share a name before the first dot.

Member names are only names: no file on disk is ever read or written under them.
"""

from __future__ import annotations

import json
import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from pipelines.rows.contract import Columns
from pipelines.sources.file_names import readable
from pipelines.sources.locate import range_locator
from pipelines.sources.picture_names import PICTURE_SUFFIXES
from pipelines.sources.records import is_corrupt

_BLOCK = 512


@dataclass(kw_only=True)
class TarSample:
    """The members with one key.

    Attributes:
        key: folder and name before the first dot.
        image: the picture's bytes.
        image_uri: locator of these bytes in the tar (None in a compressed tar, which has no addresses).
        text: the caption, from the text member.
        meta: the fields of the JSON member.
        suffixes: suffixes of the members seen, lower-case, with their dots.
        has_picture: whether there is a picture, even if its bytes were not wanted.
        error: why the sample cannot be used; None if it can.
    """

    key: str
    image: bytes | None = None
    image_uri: str | None = None
    text: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    suffixes: set[str] = field(default_factory=set)
    has_picture: bool = False
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class TarReader:
    """Reads the samples of one tar.

    Attributes:
        uri: the tar.
        columns: `image` and `caption` may name the suffixes to use (`jpg`, `en.txt`).
        pictures: whether to read the pictures' bytes.
    """

    uri: str
    columns: Columns
    pictures: bool = True

    def samples(self, handle: IO[bytes]) -> Iterator[TarSample]:
        """The samples in order. If the tar is torn, or is not a tar, the last one has `error` set.

        Raises:
            OSError: the store fails.
        """
        pending: TarSample | None = None
        typical: set[str] | None = None
        try:
            with tarfile.open(fileobj=handle, mode="r|*" if self._is_compressed() else "r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # otherwise every header stays in memory
                    key, suffix = split_name(readable(member.name))
                    if not member.isfile() or posixpath.basename(key) == "":
                        continue
                    if pending is not None and pending.key != key:
                        yield pending
                        typical, pending = pending.suffixes, None
                    pending = pending or TarSample(key=key)
                    self._take(pending, member, suffix, tar)
                torn = None if self._is_compressed() else _torn_end(handle, tar.offset)
        except (tarfile.TarError, EOFError, OSError) as error:
            if isinstance(error, OSError) and not is_corrupt(error):
                raise
            torn = str(error)
        if torn is None:
            yield from [pending] if pending else []
        else:
            yield from self._torn(pending, typical, torn)

    def _torn(self, pending: TarSample | None, typical: set[str] | None, why: str) -> Iterator[TarSample]:
        """The last sample, if it has all suffixes of the one before it, and the reject that stands for the torn end."""
        if pending is not None and pending.error is None and typical is not None and typical <= pending.suffixes:
            yield pending
            pending = None
        key = pending.key if pending else ""
        name = f" at {key!r}" if key else ""
        yield TarSample(key=key, image_uri=self.uri, error=f"{self.uri}: the tar is torn{name}: {why}")

    def _is_compressed(self) -> bool:
        return self.uri.lower().endswith(("gz", "bz2", "xz"))

    def _take(self, sample: TarSample, member: tarfile.TarInfo, suffix: str, tar: tarfile.TarFile) -> None:
        if self._is_picture(suffix) and not sample.has_picture:
            sample.has_picture = True
            if not self._is_compressed():
                sample.image_uri = range_locator(self.uri, member.offset_data, member.size)
            sample.image = _read(tar, member) if self.pictures else None
        elif suffix == f".{self.columns.caption or 'txt'}".lower():
            self._take_text(sample, _read(tar, member))
        elif suffix == ".json":
            self._take_json(sample, _read(tar, member))
        sample.suffixes.add(suffix)

    def _is_picture(self, suffix: str) -> bool:
        if self.columns.image is not None:
            return suffix == f".{self.columns.image}".lower()
        return posixpath.splitext(f"x{suffix}")[1] in PICTURE_SUFFIXES

    def _take_text(self, sample: TarSample, data: bytes) -> None:
        try:
            sample.text = data.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            sample.error = f"{self.uri}: the caption of {sample.key!r} is not UTF-8: {error}"

    def _take_json(self, sample: TarSample, data: bytes) -> None:
        try:
            meta = json.loads(data)
            if not isinstance(meta, dict):
                raise ValueError(f"a {type(meta).__name__}, not an object")
            sample.meta = meta
        except (ValueError, RecursionError) as error:
            sample.error = f"{self.uri}: the JSON of {sample.key!r} cannot be read: {error}"


def split_name(name: str) -> tuple[str, str]:
    """The key (folder and name before the first dot) and the lower-case suffix after it.

    >>> split_name("./a/001.seg.PNG")
    ('a/001', '.seg.png')
    """
    folder, base = posixpath.split(name.removeprefix("./"))
    stem, dot, rest = base.partition(".")
    return posixpath.join(folder, stem), f"{dot}{rest}".lower()


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    handle = tar.extractfile(member)
    data = handle.read() if handle else b""
    if len(data) < member.size:
        raise EOFError(f"{member.name} has {len(data)} bytes of {member.size}")
    return data


def _torn_end(handle: IO[bytes], offset: int) -> str | None:
    """Why the tar is torn where tarfile silently stopped reading; None at a proper end-of-archive marker."""
    handle.seek(offset)
    block = handle.read(_BLOCK)
    if block == bytes(_BLOCK):
        return None
    return "no end-of-archive marker" if not block else f"no member can be read at byte {offset}"
