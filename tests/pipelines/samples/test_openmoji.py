"""The demo's corpus has real pictures with names in two languages, and names their authors."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.samples.openmoji import RENDERINGS, build, concepts


def test_a_small_corpus_is_rendered_the_same_each_time(tmp_path: Path) -> None:
    first = build(tmp_path / "a", pictures=30)
    again = build(tmp_path / "b", pictures=30)
    assert (first.concepts, first.pictures) == (10, 30)
    table = pq.read_table(first.path)
    assert table.equals(pq.read_table(again.path))
    assert "CC BY-SA 4.0" in (tmp_path / "a" / "NOTICE.txt").read_text()
    assert len(set(table["key"].to_pylist())) == 30
    assert len(set(table["item"].to_pylist())) == 10

    kinds = set()
    for row in table.to_pylist():
        with Image.open(io.BytesIO(row["image"])) as image:
            kinds.add(image.format)
            assert image.size == (row["size"], row["size"])
            pixels = image.convert("RGB")
            assert len(pixels.getcolors(1 << 20) or []) > 2, "a drawing, not an empty canvas"
        english, chinese = row["caption"]
        assert english.isascii() or english
        assert not chinese.isascii()
    assert kinds == {kind for _, _, kind in RENDERINGS}


def test_there_are_enough_concepts_with_names_in_both_languages() -> None:
    found = concepts()
    assert len(found) > 1_500
    assert len({concept.code for concept in found}) == len(found)


def test_fewer_pictures_than_a_concept_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pictures 2: give at least 3"):
        build(tmp_path, pictures=2)
