"""A locator in a table must give the picture that was embedded, or fail: never another picture."""

from __future__ import annotations

import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_tools import touch

from pipelines.sources.locate import range_locator, read_image, read_images, row_locator
from pipelines.store.storage import Storage

STORE = Storage()


def test_a_row_of_any_row_group_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a#b.parquet"
    pictures = [f"picture {i}".encode() for i in range(300)]
    structs = [{"bytes": data, "path": None} for data in pictures]
    pq.write_table(pa.table({"my & col": pictures, "image": structs}), path, row_group_size=70)
    for row in (0, 69, 70, 299):
        assert read_image(row_locator(str(path), row, "my & col"), STORE) == pictures[row]
        assert read_image(row_locator(str(path), row, "image"), STORE) == pictures[row]
    for row, name in ((300, "image"), (0, "nope")):
        with pytest.raises(FileNotFoundError, match="there is no row"):
            read_image(row_locator(str(path), row, name), STORE)


def test_a_range_that_is_cut_short_is_no_picture(tmp_path: Path) -> None:
    path = touch(tmp_path / "a#offset.tar", b"0123456789")
    assert read_image(range_locator(str(path), 2, 3), STORE) == b"234"
    assert read_image(range_locator(str(path), 2, 0), STORE) == b""
    with pytest.raises(FileNotFoundError, match="ends before byte 12"):
        read_image(range_locator(str(path), 8, 4), STORE)


def test_names_with_a_hash_are_names(tmp_path: Path) -> None:
    assert read_image(str(touch(tmp_path / "a#row=1.jpg", b"x")), STORE) == b"x"


def test_http_is_refused() -> None:
    with pytest.raises(ValueError, match="scheme 'https' is not fetched"):
        read_image("https://host/a.jpg", STORE)


def test_many_are_read_in_order_and_failures_stay_in_their_place(tmp_path: Path) -> None:
    uris = [str(touch(tmp_path / f"{i}.jpg", str(i).encode())) for i in range(50)]
    uris[7] = str(tmp_path / "gone.jpg")
    uris[9] = "http://host/x"
    before = threading.active_count()
    found = read_images(uris, STORE, threads=4)
    assert isinstance(found[7], FileNotFoundError)
    assert isinstance(found[9], ValueError)
    assert [data for i, data in enumerate(found) if i not in (7, 9)] == [
        str(i).encode() for i in range(50) if i not in (7, 9)
    ]
    assert threading.active_count() == before
    assert read_images([], STORE) == []
