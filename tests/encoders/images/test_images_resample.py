"""The fast resize is a second implementation: it must compute what Pillow computes, at every size and crop."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from broken import BROKEN
from corpora import picture
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_image_bounds import photograph

from encoders.images import ImageError, ImageTransform, prepare, prepare_with_thumbnail, resample, thumbnail
from encoders.images.resample import FILTERS, resized_window

CLIP = ImageTransform(kind="shortest_edge", size=(224, 224), crop=(224, 224))
SOURCE = photograph(700, 700)


@pytest.fixture(params=["rust", "pillow"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """With the package, and as on a platform without a wheel of it."""
    if request.param == "pillow":
        monkeypatch.setitem(sys.modules, "cykooz_resizer", None)
    else:
        pytest.importorskip("cykooz_resizer")
    resample._rust.cache_clear()
    yield request.param
    resample._rust.cache_clear()


lengths = st.integers(1, 400)
shares = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    source=st.tuples(st.integers(1, 700), st.integers(1, 700)),
    size=st.tuples(lengths, lengths),
    x=shares,
    y=shares,
    name=st.sampled_from(sorted(FILTERS)),
)
@example(source=(640, 480), size=(298, 224), x=[0.12, 0.88], y=[0, 1], name="bicubic")
@example(source=(1, 700), size=(1, 400), x=[0, 1], y=[0, 1], name="lanczos")
def test_a_window_is_what_pillow_resizes_and_crops(
    source: tuple[int, int], size: tuple[int, int], x: list[float], y: list[float], name: str, implementation: str
) -> None:
    """Fixed-point coefficients of Pillow and of the crate differ by a rounding. Reduced pictures: see the next test."""
    image = SOURCE.crop((0, 0, *source))
    size = (max(size[0], -(-source[0] // 3)), max(size[1], -(-source[1] // 3)))  # below that, both average first
    left, right = int(x[0] * (size[0] - 1)), max(int(x[1] * size[0]), int(x[0] * (size[0] - 1)) + 1)
    top, bottom = int(y[0] * (size[1] - 1)), max(int(y[1] * size[1]), int(y[0] * (size[1] - 1)) + 1)
    window = (left, top, right, bottom)
    found = resized_window(image, size, window, name)
    oracle = np.asarray(image.resize(size, FILTERS[name]).crop(window))
    assert found.shape == oracle.shape == (bottom - top, right - left, 3)
    if name not in ("nearest", "box"):  # they jump: a rounded bound takes the neighbour
        off = np.abs(found.astype(int) - oracle)
        # Of 2,500 random pairs, lanczos differed by more than 1 in at most 0.2 % of the values, and by 5 at most.
        assert (off > 1).sum() <= max(6, 0.01 * off.size)
        assert off.max(initial=0) <= 8


@pytest.mark.parametrize("size", [(256, 256), (640, 480), (427, 640)])
def test_rounding_is_pillows_too(size: tuple[int, int]) -> None:
    """With other rounding, a quarter of the values would be off by one: cosines of .9995 instead of .99999."""
    pytest.importorskip("cykooz_resizer")
    buffer = io.BytesIO()
    photograph(*size).save(buffer, "PNG")
    fast, exact = (prepare(buffer.getvalue(), CLIP, mode) for mode in ("fast", "exact"))  # type: ignore[arg-type]
    assert (fast != exact).mean() < 0.02


@pytest.mark.parametrize("size", [(2800, 2100), (1801, 2399), (5000, 900)])
def test_a_picture_much_larger_is_averaged_first_and_looks_the_same(size: tuple[int, int], implementation: str) -> None:
    buffer = io.BytesIO()
    photograph(*size).save(buffer, "PNG", compress_level=1)
    fast, exact = (prepare(buffer.getvalue(), CLIP, mode).astype(float) for mode in ("fast", "exact"))  # type: ignore[arg-type]
    assert np.abs(fast - exact).mean() < 0.6
    assert np.abs(fast - exact).max() < 8


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    size=st.tuples(st.integers(1, 1500), st.integers(1, 1500)),
    orientation=st.integers(1, 8),
    kind=st.sampled_from(["JPEG", "PNG"]),
    crop=st.booleans(),
)
def test_fast_is_exact_but_for_a_little_at_every_size_and_orientation(
    size: tuple[int, int], orientation: int, kind: str, crop: bool, implementation: str
) -> None:
    """A crop from the wrong place, or of a rotated picture, would be a wrong vector without an error."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    SOURCE.resize(size, Image.Resampling.BILINEAR).save(buffer, kind, exif=exif.tobytes())
    transform = CLIP if crop else ImageTransform(size=(96, 80))
    fast, exact = (prepare(buffer.getvalue(), transform, mode).astype(float) for mode in ("fast", "exact"))  # type: ignore[arg-type]
    assert fast.shape == exact.shape
    assert np.abs(fast - exact).mean() < 1.5


@pytest.mark.parametrize("mode", ["fast", "exact"])
@pytest.mark.parametrize("max_side", [100, 900])
def test_a_thumbnail_made_beside_the_pixels_changes_neither(mode: str, max_side: int) -> None:
    """From a JPEG decoded at a quarter, a thumbnail of 900 pixels would be an enlargement."""
    buffer = io.BytesIO()
    photograph(2400, 1800).save(buffer, "JPEG")
    data = buffer.getvalue()
    pixels, small = prepare_with_thumbnail(data, CLIP, mode, 10**8, max_side)  # type: ignore[arg-type]
    np.testing.assert_array_equal(pixels, prepare(data, CLIP, mode))  # type: ignore[arg-type]
    found, alone = (np.asarray(Image.open(io.BytesIO(made)), float) for made in (small, thumbnail(data, max_side)))
    assert found.shape == alone.shape == (max_side * 3 // 4, max_side, 3)
    assert np.abs(found - alone).mean() < 3


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_picture_has_the_same_reason_with_a_thumbnail(kind: str) -> None:
    reason, make = BROKEN[kind]
    with pytest.raises(ImageError) as caught:
        prepare_with_thumbnail(make(3), CLIP, "fast", 10**8, 64)
    assert caught.value.reason == reason


def test_a_small_picture_has_a_thumbnail_of_its_own_size() -> None:
    _, small = prepare_with_thumbnail(picture(1), CLIP, "fast", 10**8, 160)
    assert Image.open(io.BytesIO(small)).size == (48, 36)
