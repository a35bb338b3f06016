"""A picture's bytes to the uint8 pixels that an image tower reads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from encoders.images.decode import MAX_PIXELS, decode, drafted_size, read_header
from encoders.images.errors import ImageError
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
# Pictures much larger than needed are first averaged down to this many times the target (PIL's `reducing_gap`).
_REDUCING_GAP = 2.0


def prepare(
    data: bytes, transform: ImageTransform, mode: Preprocessing = "fast", max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """uint8 (height, width, 3) of a picture, resized and cropped; the same shape in both modes.

    Args:
        data: the file's bytes.
        transform: what the model wants.
        mode: `exact` equals the model family's own processor to 1/255; `fast` decodes large JPEGs at reduced scale
            and shrinks large pictures in two steps.
        max_pixels: pictures larger than this, before or after resizing, are refused before they take memory.

    Raises:
        ImageError: see `open_image`.
    """
    header = read_header(data, max_pixels)
    whole = drafted_size(header) if mode == "fast" else None
    # Of the whole picture, not of the reduced one, whose sides were rounded: the shape must not depend on the mode.
    size = transform.target_size(*whole) if whole else None
    image = decode(header, data, size)
    size = size or transform.target_size(*image.size)
    gap = _REDUCING_GAP if mode == "fast" else None
    return _padded(_resized_window(image, size, transform, gap, max_pixels), transform.crop)


def prepare_image(image: Image.Image, transform: ImageTransform, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """`prepare` for a picture that is decoded already (and perhaps augmented).

    Raises:
        ImageError: it would be larger than `max_pixels` once resized.
    """
    window = _resized_window(image, transform.target_size(*image.size), transform, _REDUCING_GAP, max_pixels)
    return _padded(window, transform.crop)


def _resized_window(
    image: Image.Image, size: tuple[int, int], transform: ImageTransform, gap: float | None, max_pixels: int
) -> NDArray[np.uint8]:
    """What the centre crop keeps of the picture resized to `size`, as uint8 (height, width, 3)."""
    crop = transform.crop or (size[1], size[0])
    left, wide = _kept(size[0], crop[1])
    top, tall = _kept(size[1], crop[0])
    if wide * tall > max_pixels:
        raise ImageError("too_many_pixels", f"resized, {wide} x {tall} pixels are over the limit of {max_pixels}")
    window = (left, top, left + wide, top + tall)
    sampling = _FILTERS[transform.resample]
    if size[0] * size[1] <= max_pixels:
        whole = image if size == image.size else image.resize(size, sampling, reducing_gap=gap)
        return np.asarray(whole.crop(window))
    # A line of 100,000 x 1 pixels, resized whole, would take gigabytes. PIL can compute the window alone, but keeps
    # its bounds in single precision and so differs by some 5/255 at edges: not for ordinary pictures.
    x_scale, y_scale = image.width / size[0], image.height / size[1]
    box = (left * x_scale, top * y_scale, (left + wide) * x_scale, min((top + tall) * y_scale, image.height))
    return np.asarray(image.resize((wide, tall), sampling, box=(*box[:2], min(box[2], image.width), box[3])))


def _kept(length: int, crop: int) -> tuple[int, int]:
    """(start, length) of what a centre crop keeps of a side; rounds as transformers' processors do."""
    return max(0, (length - crop) // 2), min(length, crop)


def _padded(pixels: NDArray[np.uint8], crop: tuple[int, int] | None) -> NDArray[np.uint8]:
    """On black where the picture is smaller than the crop; an odd rest goes before, as in transformers."""
    height, width = pixels.shape[:2]
    if crop is None or (height, width) == crop:
        return np.ascontiguousarray(pixels)
    canvas = np.zeros((*crop, 3), np.uint8)
    top, left = -((height - crop[0]) // 2), -((width - crop[1]) // 2)
    canvas[top : top + height, left : left + width] = pixels
    return canvas
