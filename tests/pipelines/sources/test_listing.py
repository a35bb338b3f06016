"""The listing and what is gone follow one matcher: another would delete rows of files that are there."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stores import BUCKET, client, moto, options

from pipelines.sources.listing import list_corpus, relative_to
from pipelines.sources.patterns import Pattern
from pipelines.store.storage import Storage

_FOLDERS = st.sampled_from(["a", "b", ".h", "[1]"])
_FILES = st.sampled_from(["x.jpg", "y.jpg", "x.txt", ".x.jpg", "a.jpg", "[1].jpg"])
_PATHS = st.builds(lambda folders, name: "/".join([*folders, name]), st.lists(_FOLDERS, max_size=3), _FILES)
TREES = st.frozensets(_PATHS, min_size=1, max_size=10)
SEGMENTS = st.sampled_from(["*", "**", "?", "a", "b", "[ab]", "[[]1]", ".*", ".h", "*.jpg", "**.jpg", "x.*", "[!x]*"])
GLOBS = st.lists(SEGMENTS, min_size=1, max_size=4).map("/".join)


def grow(root: Path, tree: frozenset[str]) -> None:
    for path in tree:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")


def listed(corpus: str, storage: Storage | None = None) -> set[str]:
    """The files of a corpus, relative to the folder before its wildcards; empty if nothing is there."""
    try:
        listing = list_corpus(corpus, storage or Storage())
    except FileNotFoundError:
        return set()
    found = [relative_to(info.uri, listing.root) for info in listing.files]
    assert len(found) == len(set(found)), "a file that is listed twice is embedded twice"
    return set(found)


def by_glob(root: str, pattern: str) -> set[str]:
    """What Python's own glob finds, with everything below the folders that it names."""
    found = set()
    for path in glob.glob(f"{glob.escape(root)}/{pattern}", recursive=True):  # noqa: PTH207  (the oracle)
        if os.path.lexists(path) and not Path(path).is_dir():  # It names `missing/` for `missing/**`.
            found.add(os.path.relpath(path, root))
        for folder, folders, names in os.walk(path):
            folders[:] = [name for name in folders if not name.startswith(".")]
            found |= {os.path.relpath(Path(folder, n), root) for n in names if not n.startswith(".")}
    return found


@given(TREES, GLOBS)
def test_a_glob_names_what_pythons_glob_names_and_what_is_below_its_folders(tree: frozenset[str], text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        grow(Path(folder), tree)
        named = Pattern.glob(f"{folder}/{text}")
        base = os.path.relpath(named.root, folder)
        found = {os.path.normpath(f"{base}/{path}") for path in listed(f"{folder}/{text}")}
        # A pattern that begins with names alone is resolved to the folder that they lead to.
        assert found == {os.path.normpath(path) for path in by_glob(folder, text)}


@given(TREES, TREES, GLOBS | st.just(""))
def test_the_listing_after_a_change_is_what_the_pattern_covers(
    before: frozenset[str], after: frozenset[str], text: str
) -> None:
    """So a file is gone if and only if the listing would have named it."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        grow(root, before)
        corpus = f"{folder}/{text}".rstrip("/")
        try:
            listing = list_corpus(corpus, Storage())
        except FileNotFoundError:
            return
        pattern = listing.pattern
        assert {p for p in _below(pattern.root) if pattern.covers(p)} == {
            relative_to(info.uri, pattern.root) for info in listing.files
        }
        for path in before - after:
            (root / path).unlink()
        grow(root, after)
        now = listed(corpus)
        was = {relative_to(info.uri, pattern.root) for info in listing.files}
        if now:
            again = list_corpus(corpus, Storage())
            assert {path for path in was if again.misses(path)} == was - _below(pattern.root)


def _below(root: str) -> set[str]:
    return {os.path.relpath(Path(folder, name), root) for folder, _, names in os.walk(root) for name in names}


@pytest.fixture(scope="module")
def store() -> Iterator[tuple[str, Storage]]:
    with moto() as endpoint:
        yield endpoint, Storage.from_options(options(endpoint))


@pytest.mark.parametrize(
    "text", ["", "*", "**", "*.jpg", "**/*.jpg", "a/*", "a/b", "*/b/*.jpg", "a", "a/**/x.jpg", ".h/*", "[[]1]/*", "[1]"]
)
def test_a_store_is_listed_as_a_disk_is(text: str, store: tuple[str, Storage], tmp_path: Path) -> None:
    endpoint, storage = store
    tree = frozenset(
        ["x.jpg", ".x.jpg", "a/x.jpg", "a/b/x.jpg", "a/b/c/y.jpg", "a/.h/x.jpg", ".h/x.jpg", "b/x.txt", "[1]/x.jpg"]
    )
    grow(tmp_path, tree)
    for path in tree:
        client(endpoint).put_object(Bucket=BUCKET, Key=f"tree/{path}", Body=b"x")
    client(endpoint).put_object(Bucket=BUCKET, Key="tree/a/", Body=b"")  # as consoles mark a folder
    corpus = f"s3://{BUCKET}/tree/{text}".rstrip("/")
    assert listed(corpus, storage) == listed(f"{tmp_path}/{text}") != set()


@pytest.mark.parametrize(
    ("corpus", "path", "expected"),
    [
        ("/data/*.jpg", "sub/a.jpg", False),
        ("/data/*", "sub/deep/a.jpg", True),
        ("/data/**/*", "a.jpg", True),
        ("/data/**/*.jpg", "a/b/c.jpg", True),
        ("/data/**/*.jpg", "a/.b/c.jpg", False),
        ("/data/*", ".hidden", False),
        ("/data/.*", ".hidden", True),
        ("/data/2024-*/raw/**", "2024-01/raw/x/y.jpg", True),
        ("/data/2024-*/raw/**", "2024-01/raw", False),
        ("/data/2024-*/raw/**", "2024-01/other/y.jpg", False),
    ],
)
def test_a_star_does_not_cross_folders(corpus: str, path: str, expected: bool) -> None:
    """A `*` that did would let `sync '/data/*.jpg'` delete the rows of /data/sub."""
    assert Pattern.glob(corpus).covers(path) is expected


def test_links_are_followed_but_not_for_ever(tmp_path: Path) -> None:
    grow(tmp_path, frozenset(["c/a/x.jpg", "c/b/y.jpg", "other/z.jpg"]))
    (tmp_path / "c" / "linked").symlink_to(tmp_path / "other")
    (tmp_path / "c" / "a" / "up").symlink_to(tmp_path / "c")
    (tmp_path / "c" / "a" / "b").symlink_to(tmp_path / "c" / "b")
    (tmp_path / "c" / "b" / "a").symlink_to(tmp_path / "c" / "a")
    (tmp_path / "c" / "self.jpg").symlink_to(tmp_path / "c" / "self.jpg")
    found = listed(str(tmp_path / "c"))
    assert {"a/x.jpg", "b/y.jpg", "linked/z.jpg", "self.jpg"} <= found
    assert len(found) < 20
    assert listed(f"{tmp_path}/c/a/up/*/x.jpg") == {"a/x.jpg"}, "a link that the user names is followed"


def test_a_folder_with_the_name_of_a_pattern_is_that_folder(tmp_path: Path) -> None:
    grow(tmp_path, frozenset(["[ab]/x.jpg", "a/y.jpg"]))
    assert listed(f"{tmp_path}/[ab]") == {"x.jpg"}
    assert listed(f"{tmp_path}/[ab]/x.jpg") == {"x.jpg"}
