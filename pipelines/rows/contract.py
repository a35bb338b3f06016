"""The names that every stage and every table share: columns, reject reasons, table references.

`row_id` and `item_id` identify a row and its item. `image_vector` and `text_vector` hold the vectors, and
`fused_vector` combines both if the run asks for it. `isthmus_shard` and `isthmus_position` tell from which record of
which shard a row came, so that the ledger can be rebuilt from the rows alone. `isthmus_picture` and `isthmus_text` are
digests of what was embedded, by which stored vectors are found for reuse.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import pyarrow as pa

from encoders.protocol import Modality

ROW_ID = "row_id"
ITEM_ID = "item_id"
CAPTION = "caption"
IMAGE = "image"
IMAGE_URI = "image_uri"
IMAGE_VECTOR = "image_vector"
TEXT_VECTOR = "text_vector"
FUSED_VECTOR = "fused_vector"
THUMBNAIL = "thumbnail"
PICTURE = "isthmus_picture"
TEXT = "isthmus_text"
SHARD = "isthmus_shard"
POSITION = "isthmus_position"

INTERNAL = (PICTURE, TEXT, SHARD, POSITION)
# No column of a corpus may begin so.
OWN_PREFIX = "isthmus_"
# A column of a table while its type changes; see `pipelines.tables.retyping`.
RETYPED_PREFIX = "isthmus_retyped_"
VECTORS = (IMAGE_VECTOR, TEXT_VECTOR, FUSED_VECTOR)
RESERVED = frozenset({ROW_ID, ITEM_ID, CAPTION, IMAGE_URI, *VECTORS, THUMBNAIL, *INTERNAL})
VECTOR_COLUMNS = {"image": IMAGE_VECTOR, "text": TEXT_VECTOR}
MODALITIES: dict[str, Modality] = {IMAGE_VECTOR: "image", TEXT_VECTOR: "text"}

# What a source yields: one row per record of the corpus, before captions are spread over rows. Pass-through columns
# follow; the prefix keeps the two apart. `@reason` is set if the source itself could not read the record.
RECORD_PREFIX = "@"
RECORD_SCHEMA = pa.schema(
    [
        pa.field("@key", pa.string()),
        pa.field("@item", pa.string()),
        pa.field("@image", pa.large_binary()),
        pa.field("@image_uri", pa.string()),
        pa.field("@captions", pa.list_(pa.string())),
        pa.field("@reason", pa.string()),
        pa.field("@message", pa.string()),
    ]
)
RECORD_FIELDS = tuple(name.removeprefix(RECORD_PREFIX) for name in RECORD_SCHEMA.names)


class Reason(StrEnum):
    """Why a row was rejected: a closed set, so that reports can be compared and retries can name reasons."""

    MISSING_IMAGE = "missing_image"
    MISSING_CAPTION = "missing_caption"
    MISSING_KEY = "missing_key"
    IMAGE_NOT_FOUND = "image_not_found"
    FETCH_FAILED = "fetch_failed"
    EMPTY_IMAGE = "empty_image"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED_IMAGE = "truncated_image"
    CORRUPT_IMAGE = "corrupt_image"
    TOO_MANY_PIXELS = "too_many_pixels"
    TIMEOUT = "timeout"
    DECODER_CRASHED = "decoder_crashed"
    BAD_RECORD = "bad_record"
    CAPTION_TOO_LONG = "caption_too_long"
    ENCODE_FAILED = "encode_failed"


class Stage(StrEnum):
    """The stage in which a row was rejected."""

    READ = "read"
    DECODE = "decode"
    ENCODE = "encode"


class Mark(StrEnum):
    """What a row of a block is, if it is no record."""

    # It says only how many records its shard has.
    END = "end"


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column (or field of the format) has which role; for None the source looks for the usual names."""

    key: str | None = None
    image: str | None = None
    uri: str | None = None
    caption: str | None = None
    item: str | None = None

    @classmethod
    def from_mapping(cls, mapping: dict[str, str]) -> Columns:
        """Columns from a mapping of roles to names, such as `{"image": "jpg"}`.

        Raises:
            ValueError: the mapping has an unknown role.
        """
        roles = set(cls.__dataclass_fields__)
        if unknown := sorted(set(mapping) - roles):
            raise ValueError(f"columns: unknown role {unknown[0]!r}; the roles are {', '.join(sorted(roles))}")
        return cls(**mapping)


def vector_type(dim: int, dtype: str) -> pa.DataType:
    """The Arrow type of a vector column: FixedSizeList<float16 | float32>[dim]."""
    return pa.list_(pa.float16() if dtype == "float16" else pa.float32(), dim)
