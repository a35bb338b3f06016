"""A picture's bytes to the uint8 pixels that an image tower reads."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from encoders.images.decode import MAX_PIXELS, open_image
from encoders.images.transform import ImageTransform
from encoders.protocol import Preprocessing

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


def prepare(
    data: bytes, transform: ImageTransform, mode: Preprocessing = "fast", max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """uint8 (height, width, 3) of a picture, resized and cropped.

    Args:
        data: the file's bytes.
        transform: what the model wants.
        mode: `exact` equals the model family's own processor; `fast` decodes large JPEGs at reduced scale.
        max_pixels: larger pictures are refused before decoding.

    Raises:
        ImageError: see `open_image`.
    """
    target = _needed(data, transform) if mode == "fast" else None
    image = open_image(data, max_pixels=max_pixels, target=target)
    size = transform.target_size(*image.size)
    if size != image.size:
        image = image.resize(size, _FILTERS[transform.resample])
    return _centre_crop(np.asarray(image), transform.crop)


def _needed(data: bytes, transform: ImageTransform) -> tuple[int, int] | None:
    """(width, height) after resizing, upright; None where the header cannot be read."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format != "JPEG":
                return None
            width, height = image.size
            sideways = image.getexif().get(0x0112, 1) >= 5
    except Exception:
        return None
    return transform.target_size(height, width) if sideways else transform.target_size(width, height)


def _centre_crop(pixels: NDArray[np.uint8], crop: tuple[int, int] | None) -> NDArray[np.uint8]:
    """The centre, on black where the picture is smaller; offsets round as transformers' processors do."""
    if crop is None:
        return np.ascontiguousarray(pixels)
    height, width = pixels.shape[:2]
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    if top >= 0 and left >= 0:
        return np.ascontiguousarray(pixels[top : top + crop[0], left : left + crop[1]])
    tall, wide = max(crop[0], height), max(crop[1], width)
    canvas = np.zeros((tall, wide, 3), np.uint8)
    y, x = -((height - tall) // 2), -((width - wide) // 2)
    canvas[y : y + height, x : x + width] = pixels
    top, left = top + y, left + x
    return np.ascontiguousarray(canvas[max(0, top) : top + crop[0], max(0, left) : left + crop[1]])
