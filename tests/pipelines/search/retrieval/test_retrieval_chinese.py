"""Chinese names of emoji find their rows: by words, by meaning, and by both; also among English names."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import lance
import pyarrow as pa
import pytest

from encoders.registry import describe, load
from pipelines.rows.contract import CAPTION, IMAGE_URI, ITEM_ID, ROW_ID
from pipelines.samples.openmoji import Concept, concepts
from pipelines.search.indexing.build import build_text_index
from pipelines.search.retrieval.queries import Query
from pipelines.search.retrieval.search import OpenTable
from pipelines.store.storage import TableRef
from pipelines.tables.provenance import Provenance

ASKED = 50
Make = Callable[[Concept], Query]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> OpenTable:
    """Each concept's name in English and in Chinese, one row each."""
    rows = [(c.code, lang, name) for c in concepts() for lang, name in (("en", c.english), ("zh", c.chinese))]
    codes, langs, captions = zip(*rows, strict=True)
    vectors = load("use-multilingual").encode_texts(list(captions)).vectors
    table = pa.table(
        {
            ROW_ID: [f"{code}-{lang}" for code, lang in zip(codes, langs, strict=True)],
            ITEM_ID: list(codes),
            CAPTION: list(captions),
            IMAGE_URI: pa.nulls(len(rows), pa.string()),
            "lang": list(langs),
            "text_vector": pa.array(list(vectors), pa.list_(pa.float32(), vectors.shape[1])),
        }
    )
    ref = TableRef.parse(str(Path(tmp_path_factory.mktemp("names")) / "db" / "names"))
    provenance = Provenance(encoder=describe("use-multilingual").card, modalities=("text",))
    lance.write_dataset(table.replace_schema_metadata(provenance.to_metadata()), ref.uri)
    build_text_index(ref)
    return OpenTable.open(ref)


@pytest.fixture(scope="module")
def asked() -> list[Concept]:
    """Fifty concepts whose Chinese name has at least two characters."""
    return random.Random(0).sample([c for c in concepts() if len(c.chinese) >= 2], ASKED)


# How many of the fifty are among the first five, for each kind of query: measured values with a small margin.
WAYS: dict[str, tuple[int, Make]] = {
    "full text": (49, lambda c: Query(words=c.chinese, full_text=True)),
    "vectors": (49, lambda c: Query(words=c.chinese)),
    "hybrid": (49, lambda c: Query(words=c.chinese, hybrid=True)),
    "both languages, full text": (49, lambda c: Query(words=f"{c.chinese} {c.english}", full_text=True)),
    "both languages, vectors": (48, lambda c: Query(words=f"{c.chinese} {c.english}")),
    "both languages, hybrid": (48, lambda c: Query(words=f"{c.chinese} {c.english.split()[0]}", hybrid=True)),
    "Chinese among English rows alone": (36, lambda c: Query(words=c.chinese, where="lang = 'en'")),
}


@pytest.mark.parametrize("way", WAYS)
def test_fifty_chinese_names_find_their_rows(way: str, names: OpenTable, asked: list[Concept]) -> None:
    least, make = WAYS[way]
    found = sum(
        concept.code in names.search(make(concept), k=5, distinct=True).rows[ITEM_ID].to_pylist() for concept in asked
    )
    assert found >= least, f"{found} of {ASKED}"
