"""The stock recipe of batch inference on Ray Data: read Parquet, decode in tasks, encode in actors, write Parquet.

python ray_recipe.py CORPUS OUT MODEL ACTORS
"""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import ray


def decode(batch: dict[str, Any]) -> dict[str, Any]:
    """As the recipes do it: PIL, resized by the model's own processor."""
    from PIL import Image
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(MODEL, backend="pil")
    pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data in batch["image"]]
    pixels = processor(images=pictures, return_tensors="np")["pixel_values"]
    return {"id": batch["id"], "caption": batch["caption"], "pixels": np.asarray(pixels)}


class Encode:
    """An actor with the model."""

    def __init__(self, model: str, threads: int) -> None:
        import torch
        from transformers import CLIPModel

        torch.set_num_threads(threads)
        self.model = CLIPModel.from_pretrained(model).eval()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Features of a batch, normalised."""
        import torch

        with torch.inference_mode():
            found = self.model.get_image_features(pixel_values=torch.from_numpy(batch["pixels"])).pooler_output
        vectors = torch.nn.functional.normalize(found, dim=1).numpy()
        return {"id": batch["id"], "caption": batch["caption"], "vector": vectors}


def main(corpus: str, out: str, model: str, actors: str) -> None:
    """Run it."""
    count = int(actors)
    rows = ray.data.read_parquet(corpus, file_extensions=["parquet"])
    rows = rows.map_batches(decode, batch_size=64)
    rows = rows.map_batches(
        Encode,
        fn_constructor_args=(model, max(1, 2 // count)),
        batch_size=64,
        compute=ray.data.ActorPoolStrategy(size=count),
        num_cpus=0.5,
    )
    rows.write_parquet(out)


if __name__ == "__main__":
    MODEL = sys.argv[3]
    main(*sys.argv[1:])
