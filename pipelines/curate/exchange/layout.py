"""The folder layout of clip-retrieval, which embedding-reader reads: arrays of vectors, and Parquet files of the rest.

OUT/img_emb/img_emb_0000.npy        float16 or float32 (rows, dim)
OUT/text_emb/text_emb_0000.npy
OUT/metadata/metadata_0000.parquet  image_path, caption and all other columns, row by row
"""

from __future__ import annotations

from pipelines.rows.contract import IMAGE_VECTOR, TEXT_VECTOR

FOLDERS = {IMAGE_VECTOR: "img_emb", TEXT_VECTOR: "text_emb"}
METADATA = "metadata"
IMAGE_PATH = "image_path"
# Prefix of the files of a plain Parquet export, by which an import recognises them.
PARQUET_PREFIX = "part"


def array_name(column: str, number: int) -> str:
    """The path of a file of vectors within the folder."""
    return f"{FOLDERS[column]}/{FOLDERS[column]}_{number:04d}.npy"


def metadata_name(number: int) -> str:
    """The path of a file of metadata within the folder."""
    return f"{METADATA}/{METADATA}_{number:04d}.parquet"
