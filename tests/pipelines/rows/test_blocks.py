"""Blocks in envelopes, and the bytes of their pictures, are unchanged however they are cut or joined."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.ingest.stages import decoding
from pipelines.rows.blocks import unwrap, views, wrap

payloads = st.lists(st.none() | st.binary(max_size=40), max_size=12)


@settings(deadline=None)
@given(st.lists(payloads, max_size=4), st.integers(0, 12), st.integers(0, 12))
def test_views_are_the_bytes_of_the_valid_rows(chunks: list[list[bytes | None]], start: int, length: int) -> None:
    column = pa.chunked_array([pa.array(chunk, pa.large_binary()) for chunk in chunks], pa.large_binary())
    cut = column.slice(start, length)
    assert [view.to_pybytes() for view in views(cut)] == [value for value in cut.to_pylist() if value is not None]


@settings(deadline=None)
@given(st.lists(payloads, min_size=1, max_size=4))
def test_envelopes_that_ray_put_into_one_block_open_to_what_they_held(held: list[list[bytes | None]]) -> None:
    """After a picture of odd length, the next one's words are not aligned."""
    blocks = [pa.table({"n": range(len(rows)), "bytes": pa.array(rows, pa.large_binary())}) for rows in held]
    envelopes = [wrap(block) for block in blocks]
    odd = pa.table({"block": pa.array([b"123"], pa.large_binary())})
    together = pa.concat_tables([odd, *envelopes]).combine_chunks().slice(1)
    assert unwrap(together) == blocks
    assert unwrap(pa.concat_tables(envelopes)) == blocks


@settings(deadline=None)
@given(st.lists(st.none() | st.tuples(st.integers(1, 5), st.integers(1, 5)), max_size=8), st.integers(0, 3))
def test_pixels_come_back_as_they_were(shapes: list[tuple[int, int] | None], start: int) -> None:
    random = np.random.default_rng(0)
    pixels = [None if s is None else random.integers(0, 256, (*s, 3), np.uint8) for s in shapes]
    block = decoding._with_pixels(pa.table({"n": range(len(shapes))}), pixels).slice(start)
    rows, arrays = decoding.read_pixels(block)
    wanted = [(row, array) for row, array in enumerate(pixels[start:]) if array is not None]
    assert rows == [row for row, _ in wanted]
    for array, (_, other) in zip(arrays, wanted, strict=True):
        np.testing.assert_array_equal(array, other)
