"""Five thousand pictures, 250 of them broken in fifteen ways: each broken one is rejected, no good one is lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from broken import BROKEN
from corpora import pairs, picture
from engines import on_engine

from jobs.embed import EmbedConfig, run
from jobs.rejects import RejectsConfig
from jobs.rejects import run as rejects

pytestmark = pytest.mark.usefixtures("engine")
ROWS, BAD = 5_000, 250


def test_rows_in_are_rows_written_and_rejected_with_the_right_reasons(tmp_path: Path) -> None:
    kinds = sorted(BROKEN)
    images = [picture(i, size=(20, 16)) for i in range(ROWS)]
    expected: dict[str, str] = {}
    for n in range(BAD):
        row = (n * 37) % ROWS
        reason, make = BROKEN[kinds[n % len(kinds)]]
        images[row], expected[f"{row}"] = make(n), reason
    table = pa.table(
        {
            "id": [str(i) for i in range(ROWS)],
            "image": pa.array(images, pa.binary()),
            "caption": [f"picture number {i}" for i in range(ROWS)],
        }
    )
    pq.write_table(table, tmp_path / "c.parquet", row_group_size=256)
    report = run(
        EmbedConfig(
            corpus=str(tmp_path / "c.parquet"),
            table=str(tmp_path / "db/t"),
            encoder="fake",
            columns={"key": "id"},
            **on_engine(),
        )
    )

    assert report.rows_in == ROWS == report.written + sum(report.rejected.values())
    assert report.rejected == dict(sorted(Counter(expected.values()).items()))
    listed = rejects(RejectsConfig(table=str(tmp_path / "db/t"), limit=ROWS))
    assert {row["row_id"]: row["reason"] for row in listed.rows} == expected
    assert all(row["message"] and row["stage"] == "decode" for row in listed.rows)
    page = rejects(RejectsConfig(table=str(tmp_path / "db/t"), limit=40, html=tmp_path / "page.html")).page
    assert page is not None
    shown = Path(page).read_text()
    assert all(f"<h2>{reason}</h2>" in shown for reason in report.rejected)
    assert shown.count("data:image/jpeg;base64,") >= 1, "what a browser can make of half a picture"
    assert "it looks like an HTML page" in shown
    assert "<!DOCTYPE html><html><body>404" not in shown, "what a file holds is not markup here"
    written = lance.dataset(str(tmp_path / "db/t.lance")).to_table(columns=["row_id"])["row_id"].to_pylist()
    assert sorted(written) == sorted({str(i) for i in range(ROWS)} - set(expected))


def test_a_picture_that_the_encoder_chokes_on_costs_that_picture_alone() -> None:
    import numpy as np

    from pipelines.ingest.stages.encoding import encode_bisecting

    def encode(items: list[int]) -> np.ndarray:
        if any(i in (13, 14, 77) for i in items):
            raise RuntimeError("the model chokes")
        vectors = np.zeros((len(items), 4), np.float32)
        vectors[:, 0] = [np.nan if i == 50 else 1.0 for i in items]
        return vectors

    vectors, failures = encode_bisecting(encode, list(range(100)))  # type: ignore[arg-type]
    assert sorted(failures) == [13, 14, 50, 77]
    assert "the model chokes" in failures[13]
    assert int((vectors[:, 0] == 1.0).sum()) == 96
    with pytest.raises(RuntimeError, match="every one of 9 inputs"):
        encode_bisecting(encode, [13] * 9)  # type: ignore[arg-type]


def test_rows_broken_in_other_ways_are_rejects_too(tmp_path: Path) -> None:
    """Missing files, null pictures and null keys must become rejects: a row that names nothing must not disappear."""
    items = pairs(6)
    (tmp_path / "pictures").mkdir()
    for pair in items:
        (tmp_path / "pictures" / f"{pair.key}.jpg").write_bytes(pair.image)
    paths = [f"pictures/{p.key}.jpg" for p in items]
    paths[1], paths[2] = "pictures/nosuch.jpg", None  # type: ignore[call-overload]
    keys = ["a", "b", "c", None, "e", "f"]
    captions = ["one", "two", "three", "four", None, "  "]
    table = pa.table({"name": keys, "image_path": paths, "caption": captions})
    pq.write_table(table, tmp_path / "c.parquet")
    config = EmbedConfig(
        corpus=str(tmp_path / "c.parquet"),
        table=str(tmp_path / "db/t"),
        encoder="fake",
        columns={"key": "name"},
        **on_engine(),
    )
    report = run(config)
    assert (report.rows_in, report.written) == (6, 1)
    assert report.rejected == {"image_not_found": 1, "missing_caption": 2, "missing_image": 1, "missing_key": 1}
