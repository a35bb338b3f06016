"""Identities of shards, pictures, captions and rows. They are the same in every run."""

from __future__ import annotations

from typing import Literal, get_args

import pyarrow as pa

from encoders.digest import digest_bytes, digest_json, digest_large
from pipelines.sources.base import CorpusShard
from pipelines.tables.provenance import Provenance

# 128 bits: with digests of 64 bits, two of a billion pictures, captions or rows could well collide.
_CONTENT_BYTES = 16
PictureDigest = Literal["blake2b", "blake3"]
PICTURE_DIGEST: PictureDigest = "blake3"
PICTURE_DIGEST_KEY = "picture_digest"


def shard_id(shard: CorpusShard, file: str) -> str:
    """Identity of a shard. Its first half names the file and the job, its second half the file's version and the part.

    The two halves distinguish a new file from a changed one, and a renamed file from both.

    Args:
        shard: a part of a file of the corpus.
        file: the `file_id` of the file.
    """
    return f"{file}-{part_id(shard)}"


def file_id(identity: str, job_digest: str) -> str:
    """The first half of a shard's id, which identifies its file within a job.

    Args:
        identity: the file's identity: that of its corpus, and its path below the corpus' root.
        job_digest: digest of the encoder's fingerprint, the column roles and the modalities.
    """
    return digest_json([identity, job_digest])


def part_id(shard: CorpusShard) -> str:
    """The second half of a shard's id. It does not depend on the file's name."""
    return digest_json([shard.version, shard.start, shard.stop])


def picture_digest(data: bytes | memoryview, how: PictureDigest = PICTURE_DIGEST) -> str:
    """Identity of a picture's bytes within a table.

    Args:
        data: the picture's bytes.
        how: the digest that the table uses; see `picture_digest_of`.
    """
    return (digest_large if how == "blake3" else digest_bytes)(data, size=_CONTENT_BYTES)


def picture_digest_of(schema: pa.Schema) -> PictureDigest:
    """The digest by which a table identifies pictures, also in its row ids.

    The table's provenance names it. Old tables name none and use BLAKE2b; new ones use BLAKE3.

    Raises:
        ValueError: this version does not know the digest.
    """
    found = Provenance.from_schema(schema).settings.get(PICTURE_DIGEST_KEY, "blake2b")
    if found not in get_args(PictureDigest):
        raise ValueError(
            f"the table identifies pictures by the digest {found!r}, which this version lacks: use a newer version"
        )
    known: PictureDigest = found
    return known


def text_digest(caption: str) -> str:
    """Identity of a caption within a table."""
    return digest_bytes(caption.encode(), size=_CONTENT_BYTES)


def derived_row_id(relative_uri: str, index: int, picture: str | None, caption: str | None) -> str:
    """A row id made from content and position, for a corpus without a key column.

    Args:
        relative_uri: the path of the record's file below the root of its corpus.
        index: the record's index within the file.
        picture: the picture's digest; None without a picture.
        caption: the caption; None without one.
    """
    return digest_json([relative_uri, index, picture, caption], size=_CONTENT_BYTES)


def nth_row_id(key: str, n: int) -> str:
    """The row id of a record's n-th caption: the key itself for the first, `key#n` for the others."""
    return key if n == 0 else f"{key}#{n}"
