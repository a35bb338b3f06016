"""Augmentation and the preparation of decoded pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
from corpora import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from encoders.images import ImageError, ImageTransform, open_image, prepare
from encoders.images.augment import _window, augment
from encoders.images.prepare import prepare_image


def ramp(width: int = 64, height: int = 48) -> Image.Image:
    """The left side is dark, the right side bright, so that a flip shows."""
    line = np.linspace(0, 255, width).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(line[None, :, None], (height, width, 3)).copy())


def rises(image: Image.Image) -> bool:
    grey = np.asarray(image).astype(float).mean(axis=(0, 2))
    return bool(grey[-1] > grey[0])


def test_the_same_seed_gives_the_same_picture_and_another_another() -> None:
    """A resumed run must see the same pictures as an uninterrupted one."""
    image = open_image(picture(3, size=(80, 60)))
    for strength in ("light", "strong"):
        found = [np.asarray(augment(image, strength, seed)) for seed in (1, 1, 2)]  # type: ignore[arg-type]
        np.testing.assert_array_equal(found[0], found[1])
        assert found[0].shape != found[2].shape or not np.array_equal(found[0], found[2])
    assert augment(image, "none", 1) is image


def test_light_never_mirrors_and_strong_does_so_half_the_time() -> None:
    """In a mirrored picture, a caption that says "left" becomes false."""
    assert all(rises(augment(ramp(), "light", seed)) for seed in range(100))
    kept = sum(rises(augment(ramp(), "strong", seed)) for seed in range(200))
    assert 60 < kept < 140


@given(
    wide=st.integers(1, 300),
    tall=st.integers(1, 300),
    seed=st.integers(0, 2**62),
    smallest=st.sampled_from([0.75, 0.4]),
)
@settings(max_examples=300, deadline=None)
def test_a_window_lies_in_the_picture_and_keeps_its_share(wide: int, tall: int, seed: int, smallest: float) -> None:
    """What is cropped away cannot be found by its caption."""
    left, top, right, bottom = _window((wide, tall), smallest, np.random.default_rng(seed))
    assert 0 <= left < right <= wide
    assert 0 <= top < bottom <= tall
    lost = 0.5 / wide + 0.5 / tall  # sides are whole pixels
    assert (right - left) * (bottom - top) / (wide * tall) >= smallest - 1.1 * lost - lost * lost


def test_windows_wander_over_the_whole_picture() -> None:
    corners = [_window((100, 100), 0.4, np.random.default_rng(seed)) for seed in range(400)]
    assert min(c[0] for c in corners) == min(c[1] for c in corners) == 0
    assert max(c[2] for c in corners) == max(c[3] for c in corners) == 100
    assert len(set(corners)) > 350


@pytest.mark.parametrize("size", [(48, 36), (37, 61), (300, 20), (500, 400)])
@pytest.mark.parametrize(
    "transform",
    [
        ImageTransform(kind="shortest_edge", size=(32, 32), crop=(32, 32), resample="bicubic"),
        ImageTransform(kind="resize", size=(40, 24), resample="bilinear"),
    ],
    ids=["crop", "squash"],
)
def test_a_decoded_picture_is_prepared_as_its_bytes_are(size: tuple[int, int], transform: ImageTransform) -> None:
    """Training on other pixels than are embedded later is a shift that no loss shows."""
    data = picture(1, size=size, kind="PNG")
    np.testing.assert_array_equal(prepare_image(open_image(data), transform), prepare(data, transform, "fast"))


def test_an_augmented_picture_has_the_shape_that_the_tower_takes() -> None:
    transform = ImageTransform(kind="shortest_edge", size=(32, 32), crop=(32, 32), resample="bicubic")
    for seed in range(20):
        image = augment(open_image(picture(seed, size=(9 + seed, 120))), "strong", seed)
        found = prepare_image(image, transform)
        assert found.shape == (32, 32, 3)
        assert found.dtype == np.uint8


def test_a_picture_that_would_grow_too_large_is_refused() -> None:
    transform = ImageTransform(kind="resize", size=(400, 400), resample="bilinear")
    with pytest.raises(ImageError, match="exceed the limit of 1000"):
        prepare_image(ramp(), transform, max_pixels=1000)
    buffer = io.BytesIO()
    ramp().save(buffer, "PNG")
    with pytest.raises(ImageError):
        prepare(buffer.getvalue(), transform, max_pixels=1000)
