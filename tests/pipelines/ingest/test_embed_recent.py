"""What recurs in a run is encoded once per actor, and gets exactly the vector that it would have got anyway."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from corpora import Pair, pairs, write_parquet

from encoders.protocol import EncoderOptions
from encoders.registry import describe, load
from pipelines.ingest.stages.decoding import DecodeSettings, decode_envelope
from pipelines.ingest.stages.encoding import EncodeBlocks, EncodeSettings
from pipelines.ingest.stages.reading import ReadSettings, ShardWork, read_blocks
from pipelines.ingest.stages.recent import RecentVectors, recent_vectors
from pipelines.rows.blocks import wrap
from pipelines.rows.contract import Columns
from pipelines.sources import open_source
from pipelines.store.storage import Storage


def _items() -> list[Pair]:
    """Ninety rows of nine pictures and six captions."""
    made = pairs(9)
    return [Pair(f"{i:03}", made[i % 9].image, made[i % 6].caption, 2000) for i in range(90)]


@pytest.fixture
def blocks(tmp_path: Path) -> list[pa.Table]:
    """Six blocks of fifteen rows, as the read stage makes them."""
    corpus = str(write_parquet(tmp_path / "c.parquet", _items(), row_group_rows=90))
    source = open_source(corpus, columns=Columns(key="id"), storage=Storage.from_options(), format="auto")
    work = [ShardWork(shard=shard, shard_id="s") for shard in source.shards()]
    settings = ReadSettings(root=str(tmp_path), keyed=True, needs=frozenset(), fetch=True, block_rows=15)
    return list(read_blocks(source, work, settings, Storage.from_options()))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("thumbnail_px", [0, 16])
@pytest.mark.parametrize("is_fused", [True, False])
def test_each_picture_and_caption_is_encoded_once(
    blocks: list[pa.Table], dtype: str, thumbnail_px: int, is_fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [block.num_rows for block in blocks] == [15] * 6
    card = describe("fake").card
    settings = EncodeSettings(
        spec="fake", options=EncoderOptions(), modalities=("image", "text"), vector_dtype=dtype,
        fingerprint=card.fingerprint,
    )  # fmt: skip
    transform = describe("fake").image_transform
    assert transform is not None
    decode = DecodeSettings(transform=transform, mode="fast", max_pixels=10**6, thumbnail_px=thumbnail_px)
    seen: dict[str, int] = {"image": 0, "text": 0}
    encoder = load("fake", EncoderOptions())
    images, texts = encoder.encode_images, encoder.encode_texts

    def count_images(pixels: Sequence[Any]) -> Any:
        seen["image"] += len(pixels)
        return images(pixels)

    def count_texts(captions: Sequence[str]) -> Any:
        seen["text"] += len(captions)
        return texts(captions)

    monkeypatch.setattr(encoder, "encode_images", count_images)
    monkeypatch.setattr(encoder, "encode_texts", count_texts)
    monkeypatch.setattr("encoders.registry.load", lambda spec, options: encoder)
    actor = EncodeBlocks(settings)

    def run(block: pa.Table) -> pa.Table:
        if not is_fused:
            # A decode task in a separate process does not know what was encoded.
            monkeypatch.setattr("pipelines.ingest.stages.decoding.recent_vectors", RecentVectors)
        envelope = decode_envelope(wrap(block), decode)
        return pa.ipc.open_stream(actor(envelope)["block"][0].as_buffer()).read_all()

    found = pa.concat_tables([run(block) for block in blocks])
    assert seen == {"image": 9, "text": 6}
    assert found.num_rows == 90
    alone_images, alone_texts = {}, {}
    for row in found.to_pylist():
        alone_images.setdefault(row["isthmus_picture"], row["image_vector"])
        alone_texts.setdefault(row["caption"], row["text_vector"])
        assert row["image_vector"] == alone_images[row["isthmus_picture"]]
        assert row["text_vector"] == alone_texts[row["caption"]]
        assert (row["thumbnail"] is not None) if thumbnail_px else "thumbnail" not in row
    assert len(alone_images) == 9
    captions = list(alone_texts)
    np.testing.assert_allclose(texts(captions).vectors, [alone_texts[c] for c in captions], atol=1e-3)


def test_memory_is_bounded_and_the_oldest_go_first(blocks: list[pa.Table]) -> None:
    recent = RecentVectors(max_bytes=(4 * 8 + 400) * 3)
    digests = [f"d{i}" for i in range(10)]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(80, dtype=np.float32)), 8)
    nothing = pa.nulls(10, pa.string())
    recent.remember(
        pa.table({"isthmus_picture": digests, "isthmus_text": nothing, "_reason": nothing, "image_vector": vectors})
    )
    block = pa.table({"isthmus_picture": ["d6", "d7", "d9", None], "isthmus_text": pa.nulls(4, pa.string())})
    known = recent.attach(block)["_known_image_vector"].to_pylist()
    assert known == [None, list(range(56, 64)), list(range(72, 80)), None]
    recent.clear()
    assert recent.attach(block).column_names == block.column_names
    assert recent_vectors() is recent_vectors()
