"""What a corpus names: one matcher, by which the listing finds files and by which a later run tells what is gone.

A pattern is a folder and the segments below it. `*`, `?` and `[…]` match within a segment, and `**` matches any number
of folders. A segment that matches a folder names everything below it. Hidden names (`.git`) are named only by a segment
that begins with a dot.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

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

    def __getstate__(self) -> dict[str, object]:
        return {"root": self.root, "segments": self.segments, "literal": self.literal}

    @property
    def start(self) -> Matched:
        """What is matched at the root itself."""
        return self._skipping({0})

    def step(self, matched: Matched, name: str) -> Matched:
        """What is matched one name further down; empty if nothing below this name is in the corpus."""
        if not name:  # The object `folder/` in a store stands for a folder.
            return NOTHING
        staying = NOTHING if name[0] == "." else self._rules(matched)[0]
        return staying | self.advance(matched, name)

    def advance(self, matched: Matched, name: str) -> Matched:
        """What is matched by segments of their own, and not by `**` or because a folder above is named.

        A link to a folder above itself is followed only so far; otherwise its files would have names without end.
        """
        found = NOTHING
        for matches, then in self._rules(matched)[1]:
            if matches(name):
                found |= then
        return found

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

    def _rules(self, matched: Matched) -> tuple[Matched, list[tuple[Callable[[str], object], Matched]]]:
        """What stays matched by any name that is not hidden, and the tests of a name with what they lead to."""
        found = self._known_rules.get(matched)
        if found is None:  # Once for each set, and not for each of a hundred thousand files.
            staying = {i for i in matched if self._stays(i)}
            tests = [(self._test(self.segments[i]), self._skipping({i + 1})) for i in sorted(matched - staying)]
            found = self._known_rules[matched] = self._skipping(staying), tests
        return found

    @cached_property
    def _known_rules(self) -> dict[Matched, tuple[Matched, list[tuple[Callable[[str], object], Matched]]]]:
        return {}

    def _stays(self, i: int) -> bool:
        return i == len(self.segments) or (self.segments[i] == _ANY_FOLDERS and not self.literal)

    def _test(self, segment: str) -> Callable[[str], object]:
        """Whether a name fits a segment."""
        if self.literal or not is_pattern(segment):
            return segment.__eq__
        hides = "" if segment.startswith(".") else r"(?!\.)"
        return re.compile(hides + fnmatch.translate(segment)).match

    def _skipping(self, matched: set[int]) -> Matched:
        """With the segments after each `**`, which may match no folder at all."""
        found = set(matched)
        for i in sorted(matched):
            while i < len(self.segments) and self._stays(i):
                i += 1
                found.add(i)
        return frozenset(found)


def parts_below(uri: str, folder: str) -> Sequence[str]:
    """The names that lead from a folder to a file below it.

    >>> parts_below("/data/a/b.jpg", "/data")
    ['a', 'b.jpg']
    """
    return uri[len(folder.rstrip("/")) + 1 :].split("/")
