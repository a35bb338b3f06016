"""Chinese words find pictures with an encoder that was trained only on English captions.

No Chinese text is used in training: the captions of the corpus are English, the text tower is unchanged, and its head
sees only English vectors. That Chinese vectors land beside the English ones is what a multilingual tower is for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jobs.embed
import jobs.finetune
from pipelines.samples.openmoji import build
from pipelines.search.retrieval.search import OpenTable
from pipelines.store.storage import TableRef
from pipelines.train.finetuning.projecting import project_table

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(1_200), pytest.mark.usefixtures("ray_session")]

PICTURES, K = 3_000, 10
CHINESE = re.compile("[\u4e00-\u9fff]")


@dataclass(frozen=True)
class Searched:
    """A table of the trained encoder, and both names of each concept."""

    opened: OpenTable
    names: dict[str, tuple[str, str]]

    def recall(self, language: int, split: str) -> tuple[float, float]:
        """The share of a split's concepts whose picture is among its first ten concepts, and the share by chance."""
        where = f"split = '{split}'"
        rows = self.opened.dataset.to_table(columns=["item_id"], filter=where)
        items = sorted(set(rows["item_id"].to_pylist()) & set(self.names))
        found = []
        for item in items:
            hits = self.opened.search(
                words=self.names[item][language], k=K, where=where, distinct=True, vector_column="image_vector"
            )
            found.append(item in hits.rows["item_id"].to_pylist())
        return float(np.mean(found)), K / len(items)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    folder = tmp_path_factory.mktemp("chinese")
    build(folder, pictures=PICTURES)
    rows = pq.read_table(folder / "openmoji.parquet")
    names = dict(zip(rows["item"].to_pylist(), map(tuple, rows["caption"].to_pylist()), strict=True))
    english = pa.array([names[item][0] for item in rows["item"].to_pylist()])
    assert not any(CHINESE.search(name) for name in english.to_pylist()), "nothing that is trained on is Chinese"
    names = {item: pair for item, pair in names.items() if CHINESE.search(pair[1])}
    rows = rows.set_column(rows.column_names.index("caption"), "caption", english)
    (folder / "corpus").mkdir()
    pq.write_table(rows.drop_columns(["keywords", "keywords_zh"]), folder / "corpus" / "english.parquet")
    features, out = str(folder / "db" / "features"), folder / "model"
    jobs.embed.run(
        jobs.embed.EmbedConfig(
            corpus=str(folder / "corpus"),
            table=features,
            encoder="efficientnet-lite0+use-multilingual",
            columns={"key": "key", "item": "item"},
        )
    )
    jobs.finetune.run(
        jobs.finetune.FinetuneConfig(
            corpus=features,
            encoder="efficientnet-lite0+use-multilingual",
            out=str(out),
            where="split != 'test'",
            validation_where="split = 'validation'",
            dim=256,
            dropout=0.2,
            start="cca",
            epochs=30,
            batch_size=512,
            warmup_steps=20,
            evaluate_every=5,
            metric="MRR",
        )
    )
    table = TableRef.parse(str(folder / "db" / "trained"))
    project_table(TableRef.parse(features), str(out), table)
    return Searched(OpenTable.open(table), names)


@pytest.mark.parametrize(("split", "share", "chances"), [("train", 0.7, 10), ("test", 0.4, 3)])
def test_chinese_finds_what_english_taught(searched: Searched, split: str, share: float, chances: float) -> None:
    """For pictures that were trained on (with their English names), and for concepts that were not."""
    english, chance = searched.recall(0, split)
    chinese, _ = searched.recall(1, split)
    print(f"\n{split}: R@{K} English {english:.3f}, Chinese {chinese:.3f}, chance {chance:.3f}")  # noqa: T201
    assert chinese >= chances * chance
    assert chinese >= share * english


def test_a_mixed_query_is_understood(searched: Searched) -> None:
    """Searching with both names is at most a tenth worse than with the Chinese one alone."""
    rows = searched.opened.dataset.to_table(columns=["item_id"], filter="split = 'train'")
    items = sorted(set(rows["item_id"].to_pylist()) & set(searched.names))[:100]

    def share(words: dict[str, str]) -> float:
        found = [
            item
            in searched.opened.search(words=words[item], k=K, distinct=True, vector_column="image_vector")
            .rows["item_id"]
            .to_pylist()
            for item in items
        ]
        return float(np.mean(found))

    chinese = share({item: searched.names[item][1] for item in items})
    mixed = share({item: " ".join(searched.names[item]) for item in items})
    print(f"\nfirst 100 trained concepts: R@{K} Chinese {chinese:.3f}, both {mixed:.3f}")  # noqa: T201
    assert mixed >= chinese - 0.1
