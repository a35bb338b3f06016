"""Real corpora hold every kind of picture. A wrong decode corrupts a vector; an unexpected exception costs a batch."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from broken import BROKEN
from corpora import picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from encoders.images import ImageError, ImageTransform, open_image, prepare, thumbnail

RED = (200, 30, 40)
TRANSFORM = ImageTransform(kind="shortest_edge", size=(24, 24), crop=(24, 24))


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def solid(mode: str = "RGB", colour: object = RED, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new(mode, size, colour)  # type: ignore[arg-type]


def animated() -> bytes:
    frames = [solid(), solid(colour=(0, 0, 255))]
    return save(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)


def sixteen_bit() -> bytes:
    return save(Image.fromarray(np.full((30, 40), 32_896, np.uint16)), "PNG")


ODD: dict[str, tuple[Callable[[], bytes], tuple[int, int, int]]] = {
    "jpeg": (lambda: save(solid(), "JPEG"), RED),
    "progressive jpeg": (lambda: save(solid(), "JPEG", progressive=True), RED),
    "grey jpeg": (lambda: save(solid("L", 90), "JPEG"), (90, 90, 90)),
    "cmyk jpeg": (lambda: save(solid().convert("CMYK"), "JPEG"), RED),
    "webp": (lambda: save(solid(), "WEBP"), RED),
    "palette png": (lambda: save(solid().quantize(4), "PNG"), RED),
    "palette png with a transparent colour": (
        lambda: save(solid("P", 0), "PNG", transparency=0),
        (255, 255, 255),
    ),
    "transparent png": (lambda: save(solid("RGBA", (*RED, 0)), "PNG"), (255, 255, 255)),
    "half transparent png": (lambda: save(solid("RGBA", (0, 0, 0, 128)), "PNG"), (127, 127, 127)),
    "grey with alpha": (lambda: save(solid("LA", (90, 255)), "PNG"), (90, 90, 90)),
    "16-bit grey": (sixteen_bit, (128, 128, 128)),
    "1-bit": (lambda: save(solid("1", 1), "PNG"), (255, 255, 255)),
    "float tiff": (lambda: save(solid("F", 0.5), "TIFF"), (128, 128, 128)),
    "tiff": (lambda: save(solid(), "TIFF"), RED),
    "bmp": (lambda: save(solid(), "BMP"), RED),
    "animated gif": (animated, RED),
    "tiny": (lambda: save(solid(size=(1, 1)), "PNG"), RED),
    "long": (lambda: save(solid(size=(900, 2)), "PNG"), RED),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_every_odd_format_has_the_right_colours(kind: str, mode: str) -> None:
    make, colour = ODD[kind]
    pixels = prepare(make(), TRANSFORM, mode)  # type: ignore[arg-type]
    assert pixels.shape == (24, 24, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels.reshape(-1, 3).mean(axis=0), colour, atol=6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(orientation: int) -> None:
    """Phones store pictures rotated and record that in EXIF; models were trained on upright pictures."""
    upright = np.zeros((60, 100, 3), np.uint8)
    upright[:30, :50] = (250, 0, 0)
    upright[30:, 50:] = (0, 0, 250)
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transpose that undoes each orientation, inverted
    image = Image.fromarray(upright)
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    if orientation > 1:
        image = image.transpose(Image.Transpose(turns[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(image, "JPEG", exif=exif, quality=95, subsampling=0)
    assert inverse == turns
    for target in (None, (10, 6)):
        found = np.asarray(open_image(data, target=target).resize((100, 60)))
        assert found[15, 25].tolist() == pytest.approx([250, 0, 0], abs=12)
        assert found[45, 75].tolist() == pytest.approx([0, 0, 250], abs=12)


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_picture_says_how_it_is_broken(kind: str) -> None:
    reason, make = BROKEN[kind]
    for mode in ("fast", "exact"):
        with pytest.raises(ImageError) as caught:
            prepare(make(3), TRANSFORM, mode)  # type: ignore[arg-type]
        assert caught.value.reason == reason, str(caught.value)


def test_the_pixel_limit_is_the_callers() -> None:
    with pytest.raises(ImageError, match="40 x 30 pixels exceed the limit of 1000") as caught:
        open_image(save(solid(), "PNG"), max_pixels=1_000)
    assert caught.value.reason == "too_many_pixels"


def test_a_bomb_is_refused_by_its_header() -> None:
    """The file has no pixel data at all: had it been decoded, it would be called truncated."""
    with pytest.raises(ImageError, match="60000 x 60000 pixels exceed the limit"):
        open_image(BROKEN["a bomb"][1](0))


SEEDS = {kind: save(Image.open(io.BytesIO(picture(1))), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF")}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from(sorted(SEEDS)),
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=12),
)
def test_no_damage_raises_anything_but_an_image_error(kind: str, cut: float, flips: list[tuple[float, int]]) -> None:
    data = bytearray(SEEDS[kind][: max(1, int(len(SEEDS[kind]) * cut))])
    for place, mask in flips:
        data[int(place * (len(data) - 1))] ^= mask
    try:
        pixels = prepare(bytes(data), TRANSFORM, max_pixels=2_000_000)
    except ImageError as error:
        outcome = error.reason
    else:
        outcome = str(pixels.shape)
    assert outcome in {"not_an_image", "truncated_image", "corrupt_image", "too_many_pixels", "(24, 24, 3)"}


def test_large_jpegs_are_decoded_small_and_look_the_same() -> None:
    data = picture(5, size=(2400, 1800))
    fast = prepare(data, TRANSFORM, "fast").astype(float)
    exact = prepare(data, TRANSFORM, "exact").astype(float)
    assert open_image(data, target=(24, 24)).size < (2400, 1800)
    cosine = (fast * exact).sum() / np.linalg.norm(fast) / np.linalg.norm(exact)
    assert cosine > 0.999


def test_thumbnails_are_small_jpegs() -> None:
    data = thumbnail(picture(2, size=(500, 300)), 100)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("JPEG", (100, 60))
