"""Tables of given vectors to mine, and the naive answer to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa

from encoders.protocol import EncoderCard, TowerCard
from encoders.registry import describe
from pipelines.rows.contract import CAPTION, IMAGE_URI, IMAGE_VECTOR, ITEM_ID, POSITION, ROW_ID, SHARD, TEXT_VECTOR
from pipelines.store.storage import TableRef
from pipelines.tables.provenance import Provenance
from pipelines.train.mining.mining_settings import MiningSettings
from pipelines.vectors.digests import normalised_caption


def card(dim: int, *, spaces: tuple[str, str] = ("one", "one")) -> EncoderCard:
    """A card with `dim` dimensions; two spaces if requested."""
    towers = describe(f"fake-{max(dim, 8)}").card.towers
    changed = tuple(
        TowerCard(modality=t.modality, dim=dim, space=space, weights=t.weights, tokenizer=t.tokenizer, preprocessing="")
        for t, space in zip(towers, spaces, strict=True)
    )
    return EncoderCard(name="fake", spec="fake", towers=changed)


def write_table(
    path: Path,
    images: Sequence[np.ndarray | None],
    texts: Sequence[np.ndarray | None],
    *,
    items: Sequence[str | None],
    captions: Sequence[str | None] | None = None,
    dim: int | None = None,
    fragments: int = 2,
    encoder: EncoderCard | None = None,
) -> TableRef:
    """A table as `isthmus embed` makes it, of given vectors, in several fragments."""
    n = len(images)
    dim = dim or len(next(v for v in images if v is not None))
    kind = pa.list_(pa.float32(), dim)
    rows = pa.table(
        {
            ROW_ID: [f"r{i}" for i in range(n)],
            ITEM_ID: pa.array(items, pa.string()),
            CAPTION: pa.array(captions or [f"caption {i}" for i in range(n)], pa.string()),
            IMAGE_URI: pa.nulls(n, pa.string()),
            "n": pa.array(range(n), pa.int64()),
            IMAGE_VECTOR: pa.array(list(images), kind),
            TEXT_VECTOR: pa.array(list(texts), kind),
            SHARD: ["s"] * n,
            POSITION: pa.array(range(n), pa.int64()),
        }
    )
    provenance = Provenance(encoder=encoder or card(dim), modalities=("image", "text"))
    ref = TableRef.parse(str(path))
    size = max(1, -(-n // fragments))
    lance.write_dataset(rows.replace_schema_metadata(provenance.to_metadata()), ref.uri, max_rows_per_file=size)
    return ref


def plain_answer(
    images: Sequence[np.ndarray | None],
    texts: Sequence[np.ndarray | None],
    items: Sequence[str | None],
    captions: Sequence[str | None],
    settings: MiningSettings,
) -> tuple[list[tuple[str, str, str, float, int]], dict[str, dict[str, int]]]:
    """The definition, row by row and pair by pair: (anchor, direction, negative, score, rank), and what was dropped."""
    n = len(images)
    names = [f"only {i}" if item is None else f"item {item}" for i, item in enumerate(items)]
    said = [normalised_caption(c) if c else "" for c in captions]
    found, dropped = [], {}
    for direction in settings.directions:
        counts = dict.fromkeys(
            ("same_item", "skipped_ranks", "near_duplicate_image", "near_duplicate_caption", "above_margin"), 0
        )
        to_image = direction == "text_to_image"
        for a in range(n):
            if images[a] is None or texts[a] is None:
                continue
            query, targets = (texts[a], images) if to_image else (images[a], texts)
            positive = float(images[a] @ texts[a])
            ranked = []
            for j in range(n):
                if targets[j] is None:
                    continue
                shown_before = (
                    any(
                        names[i] == names[j] and images[i] is not None and (images[i] == images[j]).all()
                        for i in range(j)
                    )
                    if to_image
                    else False
                )
                if not shown_before:
                    ranked.append((-float(query @ targets[j]), j))
            kept, skipped = 0, 0
            for rank, (minus, j) in enumerate(sorted(ranked)[: settings.skip + settings.candidates]):
                score = -minus
                if names[j] == names[a]:
                    counts["same_item"] += 1
                    continue
                if skipped < settings.skip:
                    skipped += 1
                    counts["skipped_ranks"] += 1
                    continue
                same_item = [i for i in range(n) if names[i] == names[j]]
                of_picture = [
                    i for i in same_item if images[i] is not None and to_image and (images[i] == images[j]).all()
                ]
                compared = of_picture if to_image else [j]
                own_item = [i for i in range(n) if names[i] == names[a]]
                if to_image:
                    equal = bool(said[a]) and any(said[i] == said[a] for i in same_item)
                else:
                    equal = bool(said[j]) and any(said[i] == said[j] for i in own_item)
                near_text = any(
                    texts[i] is not None and texts[i] @ texts[a] >= settings.near_duplicate_text for i in compared
                )
                if images[j] is not None and images[j] @ images[a] >= settings.near_duplicate_image:
                    counts["near_duplicate_image"] += 1
                elif equal or near_text:
                    counts["near_duplicate_caption"] += 1
                elif score > positive - abs(positive) * float(settings.margin):
                    counts["above_margin"] += 1
                elif kept < settings.negatives:
                    kept += 1
                    found.append((f"r{a}", direction, f"r{j}", score, rank))
        dropped[direction] = counts
    return found, dropped
