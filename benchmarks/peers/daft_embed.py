"""Daft: read Parquet, decode, `embed_image`, write Parquet.  python daft_embed.py CORPUS OUT MODEL WORKERS"""

from __future__ import annotations

import sys

import daft
from daft.functions import decode_image
from daft.functions.ai import embed_image


def main(corpus: str, out: str, model: str, workers: str) -> None:
    """Run it."""
    rows = daft.read_parquet(f"{corpus}/*.parquet")
    pictures = decode_image(rows["image"], mode="RGB")
    options = {"batch_size": 64, "concurrency": int(workers)}
    rows = rows.with_column("vector", embed_image(pictures, provider="transformers", model=model, **options))
    rows.exclude("image").write_parquet(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
