"""From a picture's bytes to the uint8 pixels that an image tower reads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from encoders.images.decode import MAX_PIXELS, decode, drafted_size, read_header
from encoders.images.errors import ImageError
from encoders.images.resample import FILTERS, resized_window
from encoders.images.thumbnail import thumbnail, thumbnail_of
from encoders.images.transform import ImageTransform
from encoders.protocol import Preprocessing

_THUMBNAIL_FACTOR = 2


def prepare(
    data: bytes, transform: ImageTransform, mode: Preprocessing = "fast", max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """A picture resized and cropped, uint8 (height, width, 3); both modes give the same shape.

    Args:
        data: the file's bytes.
        transform: the preprocessing of the model.
        mode: `exact` agrees with the model family's own processor to 1/255; `fast` decodes large JPEGs at reduced
            scale, shrinks large pictures in two steps and computes only what the crop keeps.
        max_pixels: a picture larger than this, before or after resizing, is refused before it takes memory.

    Raises:
        ImageError: see `open_image`.
    """
    image, size = _decoded(data, transform, mode, max_pixels)
    return _pixels(image, size, transform, mode, max_pixels)


def prepare_with_thumbnail(
    data: bytes, transform: ImageTransform, mode: Preprocessing, max_pixels: int, max_side: int
) -> tuple[NDArray[np.uint8], bytes]:
    """`prepare` and `thumbnail` in one call; the picture is decoded only once if that gives enough pixels for both.

    Raises:
        ImageError: see `open_image`.
    """
    image, size = _decoded(data, transform, mode, max_pixels)
    pixels = _pixels(image, size, transform, mode, max_pixels)
    # A thumbnail may need more pixels than a picture decoded at reduced scale has.
    whole = mode == "exact" or drafted_size(read_header(data, max_pixels)) in (None, image.size)
    enough = whole or max(image.size) >= _THUMBNAIL_FACTOR * max_side
    return pixels, thumbnail_of(image, max_side) if enough else thumbnail(data, max_side, max_pixels)


def prepare_image(image: Image.Image, transform: ImageTransform, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """`prepare` for a picture that is already decoded (and perhaps augmented).

    Raises:
        ImageError: the resized picture would be larger than `max_pixels`.
    """
    return _pixels(image, transform.target_size(*image.size), transform, "fast", max_pixels)


def _decoded(
    data: bytes, transform: ImageTransform, mode: Preprocessing, max_pixels: int
) -> tuple[Image.Image, tuple[int, int]]:
    """The picture, perhaps at reduced scale, and the (width, height) to resize it to."""
    header = read_header(data, max_pixels)
    whole = drafted_size(header) if mode == "fast" else None
    # From the full size, not from the reduced one, whose sides are rounded: the shape must not depend on the mode.
    size = transform.target_size(*whole) if whole else None
    image = decode(header, data, size)
    return image, size or transform.target_size(*image.size)


def _pixels(
    image: Image.Image, size: tuple[int, int], transform: ImageTransform, mode: Preprocessing, max_pixels: int
) -> NDArray[np.uint8]:
    """The centre crop of the picture resized to `size`, uint8 (height, width, 3), padded to the size of the crop."""
    crop = transform.crop or (size[1], size[0])
    left, wide = _kept(size[0], crop[1])
    top, tall = _kept(size[1], crop[0])
    if wide * tall > max_pixels:
        raise ImageError("too_many_pixels", f"{wide} x {tall} pixels after resizing exceed the limit of {max_pixels}")
    window = (left, top, left + wide, top + tall)
    # A line of 100,000 x 1 pixels would take gigabytes if resized whole, so compute only the window, in either mode.
    if mode == "fast" or size[0] * size[1] > max_pixels:
        return _padded(resized_window(image, size, window, transform.resample), transform.crop)
    whole = image if size == image.size else image.resize(size, FILTERS[transform.resample])
    return _padded(np.asarray(whole.crop(window)), transform.crop)


def _kept(length: int, crop: int) -> tuple[int, int]:
    """(start, length) of the part of a side that a centre crop keeps, rounded as in transformers' processors."""
    return max(0, (length - crop) // 2), min(length, crop)


def _padded(pixels: NDArray[np.uint8], crop: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Padded with black up to the crop; an odd pixel of padding goes before the picture, as in transformers."""
    height, width = pixels.shape[:2]
    if crop is None or (height, width) == crop:
        return np.ascontiguousarray(pixels)
    canvas = np.zeros((*crop, 3), np.uint8)
    top, left = -((height - crop[0]) // 2), -((width - crop[1]) // 2)
    canvas[top : top + height, left : left + width] = pixels
    return canvas
