"""Which corpus files belong to: a wrong answer embeds everything twice, or takes one corpus for another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.ingest.moving import Listed
from pipelines.ingest.placing import Placed, place
from pipelines.tables.corpora import Corpora, RegisteredCorpus


@dataclass
class Disk:
    """A disk in memory: folders with their files, and other paths of the same folders."""

    folders: dict[str, dict[str, str]]
    links: dict[str, str] = field(default_factory=dict)

    def real(self, folder: str) -> str:
        for link, target in self.links.items():
            if folder == link or folder.startswith(link + "/"):
                return target + folder[len(link) :]
        return folder

    def files(self, folder: str) -> dict[str, str]:
        real = self.real(folder)
        found = {}
        for other, files in self.folders.items():
            found |= {f"{other}/{path}": version for path, version in files.items()}
        return {path[len(real) + 1 :]: v for path, v in found.items() if path.startswith(real + "/")}

    def is_same(self, a: str, b: str) -> bool:
        return bool(self.files(a)) and self.real(a) == self.real(b)

    def has_any(self, folder: str, paths: Iterable[str]) -> bool:
        there = self.files(folder)
        return any(path in there for path in paths)


class Table:
    """What a table remembers of runs: its corpora, and the identity and version of each settled file."""

    def __init__(self) -> None:
        self.corpora = Corpora()
        self.settled: dict[str, str] = {}

    def embed(self, disk: Disk, folder: str, name: str | None = None) -> int:
        """Embed a folder; returns the number of files that were new."""
        files = disk.files(folder)
        placed = self.place(disk, folder, name)
        self.corpora = placed.corpora
        names = placed.corpora.namer(placed.folder)
        found = {names(path).identity: version for path, version in files.items()}
        assert len(found) == len(files), "two files have one identity"
        for path in files:
            identity = names(path).identity
            assert placed.corpora.location(identity) == f"{placed.folder}/{path}", "an identity leads to its file"
        new = {identity: version for identity, version in found.items() if self.settled.get(identity) != version}
        self.settled |= new
        return len(new)

    def place(self, disk: Disk, folder: str, name: str | None = None) -> Placed:
        listed = Listed(folder, disk.real(folder), lambda: list(disk.files(folder).items()))
        return place(self.corpora, listed, name, lambda: set(self.settled.items()), disk)


FILES = {"x.jpg": "1", "sub/y.jpg": "2", "sub/deep/z.jpg": "3"}


def test_a_moved_folder_keeps_its_files() -> None:
    table = Table()
    assert table.embed(Disk({"/a": FILES}), "/a") == 3
    assert table.embed(Disk({"/b": FILES | {"new.jpg": "4"}}), "/b") == 1
    assert table.corpora.locate("/a/x.jpg") == "/b/x.jpg"
    assert table.embed(Disk({"/a": FILES}), "/a") == 0, "and back"
    assert table.corpora.locate("/b/x.jpg") == "/a/x.jpg"
    assert table.corpora.locate("/a/x.jpg") == "/a/x.jpg"


def test_an_old_folder_that_is_emptied_was_moved_and_one_that_is_not_was_not() -> None:
    table = Table()
    table.embed(Disk({"/a": FILES}), "/a")
    assert table.embed(Disk({"/a": {"README": "9"}, "/b": FILES}), "/b") == 0
    table = Table()
    table.embed(Disk({"/a": FILES}), "/a")
    moved = Disk({"/a": {"sub/y.jpg": "2"}, "/b": {"x.jpg": "1"}})
    assert table.embed(moved, "/b") == 1
    assert table.embed(moved, "/a") == 0, "what stayed is of the same corpus as before"


def test_a_link_and_another_spelling_are_the_same_folder() -> None:
    table = Table()
    disk = Disk({"/data/c": FILES}, {"/link": "/data/c", "/mnt": "/data"})
    assert table.embed(disk, "/link") == 3
    assert table.embed(disk, "/data/c") == 0
    assert table.embed(disk, "/mnt/c") == 0
    assert table.embed(disk, "/mnt/c/sub") == 0
    moved = Disk({"/new": FILES})
    assert table.embed(moved, "/new") == 0
    assert table.corpora.locate("/link/x.jpg") == "/new/x.jpg", "rows name pictures as the user did"


def test_a_copy_is_refused_before_any_work_and_a_name_decides() -> None:
    table = Table()
    both = Disk({"/snap/1": FILES, "/snap/2": FILES})
    table.embed(both, "/snap/1")
    with pytest.raises(ValueError, match=r"3 of its files .* corpus '/snap/1' .*--corpus-name /snap/1 if"):
        table.embed(both, "/snap/2")
    assert table.embed(both, "/snap/2", "other") == 3
    assert table.embed(both, "/snap/2") == 0, "from then on its folder is known"
    again = Table()
    again.embed(both, "/snap/1")
    assert again.embed(both, "/snap/2", "/snap/1") == 0
    assert again.corpora.locate("/snap/1/x.jpg") == "/snap/2/x.jpg"


def test_one_file_in_common_does_not_make_a_store_s_prefixes_one_corpus() -> None:
    """In a store the version is a digest of the content, and many corpora share a placeholder."""
    table = Table()
    cats = {"none.jpg": "0", "1.jpg": "1", "2.jpg": "2"}
    dogs = {"none.jpg": "0", "1.jpg": "3", "2.jpg": "4", "3.jpg": "5"}
    assert table.embed(Disk({"s3://b/cats": cats}), "s3://b/cats") == 3
    assert table.embed(Disk({"s3://b/dogs": dogs}), "s3://b/dogs") == 4, "not even when the cats are gone"
    on_disk = Table()
    on_disk.embed(Disk({"/cats": cats}), "/cats")
    with pytest.raises(ValueError, match=r"1 of its files are in the table as files of corpus '/cats'"):
        on_disk.embed(Disk({"/dogs": dogs}), "/dogs")


def test_other_files_of_the_same_names_are_another_corpus() -> None:
    table = Table()
    disk = Disk({"/cats": {"0.jpg": "1"}, "/dogs": {"0.jpg": "2"}})
    assert table.embed(disk, "/cats") == 1
    assert table.embed(disk, "/dogs") == 1
    assert len(table.corpora.entries) == 2


@pytest.mark.parametrize("order", [("/d/a", "/d"), ("/d", "/d/a"), ("/d/a/b", "/d/a", "/d"), ("/d", "/d/a/b", "/d/a")])
def test_folders_within_each_other_share_their_files(order: tuple[str, ...]) -> None:
    disk = Disk({"/d": {"x.jpg": "1", "a/y.jpg": "2", "a/b/z.jpg": "3"}})
    table = Table()
    assert sum(table.embed(disk, folder) for folder in order) == 3
    moved = Disk({"/e": disk.files("/d")})
    for folder in order[::-1]:
        assert table.embed(moved, folder.replace("/d", "/e", 1)) == 0, folder


def test_a_folder_that_takes_the_place_of_a_moved_one_is_another_corpus() -> None:
    table = Table()
    table.embed(Disk({"/a": FILES}), "/a")
    others = {"x.jpg": "7", "sub/y.jpg": "8"}
    table.embed(Disk({"/b": FILES}), "/b")
    both = Disk({"/a": others, "/b": FILES})
    assert table.embed(both, "/a") == 2
    assert table.embed(both, "/b") == 0
    assert table.embed(both, "/a") == 0
    assert table.embed(both, "/a/sub") == 0


def test_names_that_do_not_fit_are_refused() -> None:
    table = Table()
    disk = Disk({"/a": FILES, "/b/c": {"q.jpg": "9"}})
    assert table.embed(disk, "/a") == 3
    with pytest.raises(ValueError, match=r"corpus_name '/x': not a corpus of this table \(there are: '/a'\)"):
        table.embed(disk, "/b", "/x")
    assert table.embed(disk, "/a", "cats") == 0, "a name for what had none"
    assert table.embed(disk, "/a/sub", "cats") == 0
    with pytest.raises(ValueError, match=r"corpus_name 'dogs': /a is in corpus 'cats'"):
        table.embed(disk, "/a", "dogs")
    with pytest.raises(ValueError, match=r"corpus_name 'dogs': /a/sub is in corpus 'cats'"):
        table.embed(disk, "/a/sub", "dogs")
    table.embed(disk, "/b/c", "dogs")
    with pytest.raises(ValueError, match=r"corpus_name 'dogs': its folder is /b/c, which is within /b"):
        table.embed(disk, "/b", "dogs")


def test_two_corpora_that_both_moved_are_told_apart_or_asked_for() -> None:
    table = Table()
    table.embed(Disk({"/a": {"x": "1", "y": "1"}, "/b": {"x": "1"}}), "/a", "a")
    table.embed(Disk({"/a": {"x": "1", "y": "1"}, "/b": {"x": "1"}}), "/b", "b")
    with pytest.raises(ValueError, match=r"may be those of corpus 'a' or 'b', which both have moved"):
        table.embed(Disk({"/c": {"x": "1"}}), "/c")
    assert table.embed(Disk({"/c": {"x": "1", "y": "1"}}), "/c") == 0
    assert table.embed(Disk({"/c": {"x": "1", "y": "1"}, "/d": {"x": "1"}}), "/d", "b") == 0


PATHS = st.sampled_from(["x", "a/x", "a/b/x", "a/b/y", "y"])
PLACES = st.sampled_from(["/p", "/q", "/r"])
MOVES = st.lists(st.tuples(st.sampled_from(["move", "embed", "within", "add"]), PLACES, PLACES), max_size=12)


@given(st.dictionaries(PATHS, st.just("v"), min_size=1), MOVES)
def test_one_corpus_is_embedded_once_wherever_it_goes(files: dict[str, str], steps: list[tuple[str, str, str]]) -> None:
    """A single corpus in any place, as a whole or in part: no file ever has two identities."""
    table, here = Table(), "/p"
    held = {path: str(n) for n, path in enumerate(files)}
    embedded = table.embed(Disk({here: held}), here)
    for what, a, _ in steps:
        if what == "move":
            here = a
        elif what == "add":
            held[f"new{len(held)}"] = str(len(held))
        folder = f"{here}/a" if what == "within" and any(p.startswith("a/") for p in held) else here
        embedded += table.embed(Disk({here: held}), folder)
    embedded += table.embed(Disk({here: held}), here)
    assert embedded == len(held)
    assert len(table.corpora.entries) == 1
    assert table.corpora.entries[0].root == here


def test_an_identity_never_means_two_files() -> None:
    corpora = Corpora(
        (
            RegisteredCorpus(name="inner", identity_root="/d/a", root="/elsewhere"),
            RegisteredCorpus(name="/d", identity_root="/d", root="/d"),
        )
    )
    outer, inner = corpora.namer("/d")("a/x.jpg"), corpora.namer("/elsewhere")("x.jpg")
    assert outer.identity != inner.identity
    assert corpora.location(outer.identity) == "/d/a/x.jpg"
    assert corpora.location(inner.identity) == "/elsewhere/x.jpg"
