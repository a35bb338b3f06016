"""Runs in an environment with FiftyOne: reads a dataset with it and reports the content as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import fiftyone as fo
import fiftyone.brain as fob
from PIL import Image

NAMES = ("row_id", "item_id", "caption", "price", "new", "day", "at", "filepath", "tags", "image_vector", "text_vector")


def read(folder: str, answer: str) -> None:
    dataset = fo.Dataset.from_dir(dataset_dir=folder, dataset_type=fo.types.FiftyOneDataset)
    columns = {name: dataset.values(name) for name in NAMES}
    for name in ("image_vector", "text_vector"):
        types = {str(vector.dtype) for vector in columns[name] if vector is not None}
        assert types == {"float32"}, types
        columns[name] = [None if vector is None else vector.tolist() for vector in columns[name]]
    sizes = []
    for path in columns["filepath"]:
        with Image.open(path) as picture:
            picture.load()
            sizes.append(picture.size)
    dataset.compute_metadata()
    similarity = fob.compute_similarity(dataset, embeddings="text_vector", brain_key="like")
    first = dataset.match(fo.ViewField("caption") == "red thing 0").first()
    near = dataset.sort_by_similarity(first.id, k=5, brain_key="like")
    fob.compute_visualization(dataset, embeddings="image_vector", method="pca", brain_key="map")
    found = columns | {
        "sizes": sizes,
        "widths": dataset.values("metadata.width"),
        "info": dataset.info,
        "media_type": dataset.media_type,
        "schema": {name: str(field) for name, field in dataset.get_field_schema().items()},
        "indexed": similarity.total_index_size,
        "near": near.values("row_id"),
        "mapped": len(dataset.load_brain_results("map").points),
        "cheap": len(dataset.match(fo.ViewField("price") < 10)),
        "shuffled": dataset.shuffle(seed=1).values("row_id"),
    }
    Path(answer).write_text(json.dumps(found, default=str))
    dataset.delete()


def read_values(folder: str, answer: str) -> None:
    """All fields with their values, of any kind."""
    dataset = fo.Dataset.from_dir(dataset_dir=folder, dataset_type=fo.types.FiftyOneDataset)
    found = {name: [repr(sample[name]) for sample in dataset] for name in dataset.get_field_schema()}
    Path(answer).write_text(json.dumps(found))
    dataset.delete()


if __name__ == "__main__":
    {"read": read, "read_values": read_values}[sys.argv[1]](*sys.argv[2:])
