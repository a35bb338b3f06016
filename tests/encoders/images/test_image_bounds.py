"""Memory and shape: an absurd picture must not kill a worker, and no mode may change the shape of the model's input."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from encoders.images import ImageError, ImageTransform, open_image, prepare
from encoders.protocol import Preprocessing

CROPPED = ImageTransform(kind="shortest_edge", size=(224, 224), crop=(224, 224))
UNCROPPED = ImageTransform(kind="shortest_edge", size=(64, 64))
PATCHES = ImageTransform(kind="patches", size=None, patch_size=16, max_patches=64)


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise with equal energy in every octave, as in photographs, and some grain."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for octave in range(1, 9):
        coarse = rng.normal(size=(max(2, 2**octave * height // width), 2**octave, 3)) * 60 * 2.0 ** (-octave * 0.7)
        layers = [Image.fromarray(coarse[..., c].astype(np.float32)) for c in range(3)]
        total += np.stack([np.asarray(layer.resize((width, height))) for layer in layers], axis=-1)
    total += rng.normal(size=total.shape) * 10
    return Image.fromarray((128 + total).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("mode", ["fast", "exact"])
@pytest.mark.parametrize("size", [(20_000_000, 1), (1, 100_000)])
def test_a_line_of_pixels_is_resized_without_its_far_ends(mode: Preprocessing, size: tuple[int, int]) -> None:
    """Resized whole, the first picture would have 224 x 4,480,000,000 pixels."""
    data = save(Image.new("1", size, 1), "PNG")
    tracemalloc.start()
    pixels = prepare(data, CROPPED, mode)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pixels.shape == (224, 224, 3)
    assert pixels.min() == 255
    assert peak_bytes < 200_000_000


def test_a_line_of_pixels_that_nothing_crops_is_refused() -> None:
    with pytest.raises(ImageError, match="6400000 x 64 pixels after resizing") as caught:
        prepare(save(Image.new("1", (100_000, 1)), "PNG"), UNCROPPED, "exact")
    assert caught.value.reason == "too_many_pixels"


@pytest.mark.parametrize("transform", [CROPPED, UNCROPPED, PATCHES])
@pytest.mark.parametrize("size", [(1001, 667), (1333, 2001), (1799, 531), (703, 1409), (640, 427)])
def test_both_modes_give_one_shape(transform: ImageTransform, size: tuple[int, int]) -> None:
    """A reduced JPEG has rounded sides: a size computed from them can be off by a pixel or by a row of patches."""
    data = save(Image.new("RGB", size, (90, 120, 10)), "JPEG")
    assert prepare(data, transform, "fast").shape == prepare(data, transform, "exact").shape


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "MPO"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_fast_is_close_to_exact_on_a_large_photograph(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(photograph(3000, 2000), kind, exif=exif.tobytes())
    fast, exact = (prepare(data, CROPPED, mode).astype(float) for mode in ("fast", "exact"))  # type: ignore[arg-type]
    fast, exact = fast - fast.mean(), exact - exact.mean()
    assert (fast * exact).sum() / np.linalg.norm(fast) / np.linalg.norm(exact) > 0.9995
    assert np.abs(fast - exact).max() < 8


def test_pictures_of_phones_with_two_views_are_reduced_too() -> None:
    image = photograph(1600, 1200)
    data = save(image, "MPO", save_all=True, append_images=[image.resize((320, 240))])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert open_image(data, target=(130, 100)).size == (400, 300)


@pytest.mark.parametrize(
    ("array", "colours"),
    [
        (np.array([[0, 32_768, 65_535]], np.uint16), [0, 128, 255]),
        (np.array([[-9, 32_768, 65_535]], np.int32), [0, 127.5, 255]),
        (np.array([[0, 50_000, 100_000]], np.int32), [0, 127.5, 255]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 127.5, 255]),
        (np.array([[-3.0, 100.0, 255.0]], np.float32), [0, 100, 255]),
        (np.array([[np.nan, 0.25, 1.0]], np.float32), [0, 63.75, 255]),
    ],
)
def test_deep_greys_are_scaled_and_not_clipped(array: np.ndarray, colours: list[float]) -> None:
    found = np.asarray(open_image(save(Image.fromarray(array), "TIFF")))[0, :, 0]
    np.testing.assert_allclose(found, colours, atol=1)
