"""What a corpus names: one matcher, by which the listing finds files and by which a later run tells what is gone.

A pattern is a folder and the segments below it. `*`, `?` and `[…]` match within a segment, and `**` matches any number
of folders. A segment that matches a folder names everything below it. Hidden names (`.git`) are named only by a segment
that begins with a dot.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

GLOB_CHARACTERS = "*?["
_ANY_FOLDERS = "**"

# How many segments may have been matched so far. All of them: the name, and everything below it, is in the corpus.
Matched = frozenset[int]
NOTHING: Matched = frozenset()


def is_pattern(text: str) -> bool:
    """Whether a path has wildcards."""
    return any(character in text for character in GLOB_CHARACTERS)


@dataclass(frozen=True)
class Pattern:
    """The files that a corpus names.

    Attributes:
        root: the folder that relative names start from: a file's folder, or the part of a glob before its first
            wildcard.
        segments: the segments below it; none for a whole folder.
        literal: whether the segments are names, even if they have the characters of wildcards.
    """

    root: str
    segments: tuple[str, ...] = ()
    literal: bool = False

    @classmethod
    def folder(cls, uri: str) -> Pattern:
        """Everything in a folder."""
        return cls(uri)

    @classmethod
    def file(cls, uri: str) -> Pattern:
        """One file."""
        folder, _, name = uri.rpartition("/")
        return cls(folder or "/", (name,), literal=True)

    @classmethod
    def glob(cls, uri: str) -> Pattern:
        """The files that a glob names.

        >>> Pattern.glob("s3://bucket/data/*/x.parquet")
        Pattern(root='s3://bucket/data', segments=('*', 'x.parquet'), literal=False)
        """
        parts = uri.split("/")
        wild = next((i for i, part in enumerate(parts) if is_pattern(part)), len(parts))
        segments = parts[wild:]
        if segments and segments[-1] == _ANY_FOLDERS:  # It names what is in the folders, and not a file in their place.
            segments.append("*")
        return cls("/".join(parts[:wild]) or "/", tuple(segments))

    @property
    def start(self) -> Matched:
        """What is matched at the root itself."""
        return self._skipping({0})

    def step(self, matched: Matched, name: str) -> Matched:
        """What is matched one name further down; empty if nothing below this name is in the corpus."""
        if matched == self._whole:  # The usual case: a folder of a hundred thousand files.
            return NOTHING if name.startswith(".") or not name else matched
        if not name:  # The object `folder/` in a store stands for a folder.
            return NOTHING
        staying = () if name.startswith(".") else (i for i in matched if self._stays(i))
        return self._skipping({*staying, *self.advance(matched, name)})

    def advance(self, matched: Matched, name: str) -> Matched:
        """What is matched by segments of their own, and not by `**` or because a folder above is named.

        A link to a folder above itself is followed only so far; otherwise its files would have names without end.
        """
        end = len(self.segments)
        return self._skipping({i + 1 for i in matched if i < end and not self._stays(i) and self._is(i, name)})

    def named(self, matched: Matched) -> bool:
        """Whether a file that was matched so far is in the corpus."""
        return len(self.segments) in matched

    def descends(self, matched: Matched) -> bool:
        """Whether files of any depth may follow."""
        return any(self._stays(i) for i in matched)

    def only_name(self, matched: Matched) -> str | None:
        """The one name that can follow, so that nobody need list the folder; None if there are several."""
        if len(matched) != 1:
            return None
        (i,) = matched
        if i == len(self.segments) or not (self.literal or not is_pattern(self.segments[i])):
            return None
        return self.segments[i]

    def covers(self, path: str) -> bool:
        """Whether the corpus names a file, whether the file exists or not.

        Args:
            path: the file's path, relative to the root.

        >>> [Pattern.glob("/data/*.jpg").covers(path) for path in ("a.jpg", "sub/a.jpg")]
        [True, False]
        """
        matched = self.start
        for name in path.split("/"):
            matched = self.step(matched, name)
        return self.named(matched)

    @cached_property
    def _whole(self) -> Matched:
        return frozenset({len(self.segments)})

    def _stays(self, i: int) -> bool:
        return i == len(self.segments) or (self.segments[i] == _ANY_FOLDERS and not self.literal)

    def _is(self, i: int, name: str) -> bool:
        segment = self.segments[i]
        if self.literal or not is_pattern(segment):
            return name == segment
        if name.startswith(".") and not segment.startswith("."):
            return False
        return _regex(segment).match(name) is not None

    def _skipping(self, matched: set[int]) -> Matched:
        """With the segments after each `**`, which may match no folder at all."""
        found = set(matched)
        for i in sorted(matched):
            while i < len(self.segments) and self._stays(i):
                i += 1
                found.add(i)
        return frozenset(found)


@lru_cache(maxsize=256)
def _regex(segment: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(segment))


def parts_below(uri: str, folder: str) -> Sequence[str]:
    """The names that lead from a folder to a file below it.

    >>> parts_below("/data/a/b.jpg", "/data")
    ['a', 'b.jpg']
    """
    return uri[len(folder.rstrip("/")) + 1 :].split("/")
