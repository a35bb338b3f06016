"""The encode stage: an actor that holds the encoder and adds vectors to decoded blocks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from encoders.protocol import Encoder, EncoderOptions, Modality, TextVectors
from pipelines.ingest.stages.decoding import read_pixels
from pipelines.ingest.stages.recent import recent_vectors
from pipelines.rows.blocks import (
    HEIGHT,
    KNOWN_PREFIX,
    OVERLONG,
    PIXELS,
    READY,
    REUSED,
    WIDTH,
    Rejections,
    unwrap_one,
    with_seconds,
    wrap,
)
from pipelines.rows.contract import CAPTION, IMAGE, IMAGE_VECTOR, PICTURE, TEXT_VECTOR, Reason, Stage, vector_type
from pipelines.store.faults import fault
from pipelines.store.memory import freed_memory

log = logging.getLogger(__name__)
_LENGTH_TOLERANCE = 1e-2
_HOPELESS = 8


@dataclass(frozen=True, kw_only=True)
class EncodeSettings:
    """Settings of an encode actor: plain data, pickled to the actors.

    Attributes:
        spec: the encoder's name or folder, as `encoders.registry.load` takes it.
        options: precision, device, batch sizes and other options of the encoder.
        modalities: the modalities to embed.
        vector_dtype: `float16` or `float32`, the type of the stored vectors.
        fingerprint: the fingerprint that the encoder must have.
    """

    spec: str
    options: EncoderOptions
    modalities: tuple[Modality, ...]
    vector_dtype: str
    fingerprint: str


class EncodeBlocks:
    """A Ray Data actor: loads the encoder once, then encodes block after block."""

    def __init__(self, settings: EncodeSettings) -> None:
        from encoders.registry import load

        self._freed = freed_memory()
        self._settings = settings
        self._recent = recent_vectors()
        self._recent.clear()
        self._encoder: Encoder = load(settings.spec, settings.options)
        if self._encoder.card.fingerprint != settings.fingerprint:
            # A worker node with other weights under the same name would corrupt the table.
            raise ValueError(
                f"encoder {settings.spec!r}: fingerprint {self._encoder.card.fingerprint} on this node, "
                f"{settings.fingerprint} on the driver; install the same weights on all nodes"
            )

    def __call__(self, envelope: pa.Table) -> pa.Table:
        """`encode` as Ray Data calls it."""
        return wrap(self.encode(unwrap_one(envelope)))

    def encode(self, block: pa.Table) -> pa.Table:
        """The block with `image_vector` and `text_vector`, without pixels."""
        block = encode_block(self._recent.attach(block), self._encoder, self._settings)
        self._recent.remember(block)
        self._freed.give_back()
        return block

    def warm_up(self, block: pa.Table) -> None:
        """Encode a block and discard the result, so that a model's first call is not part of any measurement."""
        encode_block(block, self._encoder, self._settings)


def encode_block(block: pa.Table, encoder: Encoder, settings: EncodeSettings) -> pa.Table:
    """The block with vectors. Rows that the encoder fails on are rejected one by one.

    Args:
        block: a block of the decode stage (or of the read stage, if no pictures are embedded).
        encoder: the encoder.
        settings: the modalities, and the vectors' type.
    """
    started = time.perf_counter()
    fault("encode")
    rejections = Rejections(block, Stage.ENCODE)
    vectors: dict[str, pa.Array] = {}
    overlong = np.zeros(block.num_rows, np.int64)
    if "image" in settings.modalities:
        vectors[IMAGE_VECTOR] = _image_vectors(block, encoder, rejections, settings)
    if "text" in settings.modalities:
        vectors[TEXT_VECTOR], overlong = _text_vectors(block, encoder, rejections, settings)
    reused = np.zeros(block.num_rows, np.int64)
    for name, array in vectors.items():
        if KNOWN_PREFIX + name in block.column_names:
            known = block[KNOWN_PREFIX + name].combine_chunks()
            vectors[name] = _known_or_new(known, array)
            reused += known.is_valid().to_numpy(zero_copy_only=False)
    block = rejections.apply()
    for name, array in vectors.items():
        block = block.append_column(name, array)
    block = block.append_column(OVERLONG, pa.array(overlong)).append_column(REUSED, pa.array(reused))
    block = block.append_column(READY, pa.array(np.full(block.num_rows, time.time())))
    spare = [n for n in block.column_names if n in (PIXELS, HEIGHT, WIDTH, IMAGE) or n.startswith(KNOWN_PREFIX)]
    return with_seconds(block.drop_columns(spare), "encode", time.perf_counter() - started)


def _known_or_new(known: pa.FixedSizeListArray, new: pa.FixedSizeListArray) -> pa.FixedSizeListArray:
    n = len(known)
    places = np.where(known.is_valid().to_numpy(zero_copy_only=False), np.arange(n), np.arange(n) + n)
    return pa.concat_arrays([known, new]).take(pa.array(places))


def _is_known(block: pa.Table, vector: str) -> list[bool]:
    """Whether each row's vector came with the block."""
    name = KNOWN_PREFIX + vector
    return block[name].is_valid().to_pylist() if name in block.column_names else [False] * block.num_rows


def _image_vectors(block: pa.Table, encoder: Encoder, rejections: Rejections, settings: EncodeSettings) -> pa.Array:
    rows, pixels = read_pixels(block)
    vectors, failures = encode_bisecting(encoder.encode_images, pixels)
    pictures = block[PICTURE].to_pylist()
    by_picture = {pictures[row]: i for i, row in enumerate(rows)}
    places: list[int | None] = [by_picture.get(p) if p is not None else None for p in pictures]
    known = _is_known(block, IMAGE_VECTOR)
    for row, place in enumerate(places):
        if place is None and pictures[row] is not None and row not in rejections and not known[row]:
            raise RuntimeError(f"picture {pictures[row]} has no pixels in its block; the block was split on its way")
        if place in failures:
            rejections.add(row, Reason.ENCODE_FAILED, failures[place])
            places[row] = None
    return _fixed_size_lists(vectors, places, _dim(encoder, "image"), settings.vector_dtype)


def _text_vectors(
    block: pa.Table, encoder: Encoder, rejections: Rejections, settings: EncodeSettings
) -> tuple[pa.Array, NDArray[np.int64]]:
    captions = block[CAPTION].to_pylist()
    known = _is_known(block, TEXT_VECTOR)
    rows = [r for r, text in enumerate(captions) if text is not None and r not in rejections and not known[r]]
    flags: dict[str, tuple[bool, bool]] = {}

    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        result: TextVectors = encoder.encode_texts(texts)
        flags.update(zip(texts, zip(result.overlong, result.rejected, strict=True), strict=True))
        return result.vectors

    unique = list(dict.fromkeys(captions[row] for row in rows))
    vectors, failures = encode_bisecting(encode, unique, may_be_zero=lambda text: flags[text][1])
    index = {text: i for i, text in enumerate(unique)}
    places: list[int | None] = [None] * block.num_rows
    overlong = np.zeros(block.num_rows, np.int64)
    for row in rows:
        text = captions[row]
        places[row] = index[text]
        if index[text] in failures:
            rejections.add(row, Reason.ENCODE_FAILED, failures[index[text]])
            continue
        overlong[row], refused = flags[text]
        if refused:
            rejections.add(row, Reason.CAPTION_TOO_LONG, f"the caption has {len(text)} characters, too many to read")
    return _fixed_size_lists(vectors, places, _dim(encoder, "text"), settings.vector_dtype), overlong


def encode_bisecting(
    encode: Callable[[Sequence[Any]], NDArray[np.float32]],
    items: Sequence[Any],
    *,
    may_be_zero: Callable[[Any], bool] = lambda item: False,
) -> tuple[NDArray[np.float32], dict[int, str]]:
    """Vectors of all items. A batch that fails is halved until only the failing items are left out.

    Args:
        encode: returns vectors (n, dim) for n items; may raise.
        items: the items to encode.
        may_be_zero: whether an item's vector may have length 0 (it was refused on purpose).

    Returns:
        Vectors (n, dim), zero where an item failed, and index → message of the failures. An error that persists for a
        single item, out-of-memory errors included, is a failure of that item.

    Raises:
        RuntimeError: none of eight or more items could be encoded, so the encoder itself is at fault.
    """
    failures: dict[int, str] = {}
    pieces: dict[int, NDArray[np.float32]] = {}

    def attempt(start: int, stop: int) -> None:
        try:
            vectors = encode(items[start:stop])
        except Exception as error:
            if stop - start == 1:
                failures[start] = f"{type(error).__name__}: {error}"
                return
            middle = (start + stop) // 2
            attempt(start, middle)
            attempt(middle, stop)
            return
        # NaN fails the comparison too.
        good = np.abs(np.linalg.norm(vectors, axis=1) - 1.0) < _LENGTH_TOLERANCE
        for i in range(start, stop):
            if good[i - start] or may_be_zero(items[i]):
                pieces[i] = vectors[i - start]
            else:
                failures[i] = "the encoder returned a vector whose length is not 1 (or not a number)"

    if items:
        attempt(0, len(items))
    if len(failures) == len(items) >= _HOPELESS:
        raise RuntimeError(f"the encoder failed on every one of {len(items)} inputs: {failures[0]}")
    dim = len(next(iter(pieces.values()))) if pieces else 0
    vectors = np.zeros((len(items), dim), np.float32)
    for i, vector in pieces.items():
        vectors[i] = vector
    return vectors, failures


def _dim(encoder: Encoder, modality: Modality) -> int:
    tower = encoder.card.tower(modality)
    if tower is None:
        raise ValueError(f"encoder {encoder.card.name!r} has no {modality} tower")
    return tower.dim


def _fixed_size_lists(
    vectors: NDArray[np.float32], places: list[int | None], dim: int, dtype: str
) -> pa.FixedSizeListArray:
    """(n, dim) list array: row i gets vector `places[i]`, or null if that is None."""
    flat = np.zeros((len(places), dim), np.float16 if dtype == "float16" else np.float32)
    for row, place in enumerate(places):
        if place is not None and vectors.shape[1] == dim:
            flat[row] = vectors[place]
    missing = pa.array([place is None for place in places], pa.bool_())
    values = pa.array(flat.ravel(), vector_type(dim, dtype).value_type)
    return pa.FixedSizeListArray.from_arrays(values, type=vector_type(dim, dtype), mask=missing)
