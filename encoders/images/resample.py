"""Resizing with a crop, quickly: only what the crop keeps is computed, by SIMD code where there is some.

`cykooz_resizer` (the Rust crate fast_image_resize) computes Pillow's own convolutions, to 2/255, ten times as fast.
It has no wheels for every platform; without it Pillow does the same more slowly.
"""

from __future__ import annotations

import math
from functools import cache
from types import ModuleType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
_RUST_FILTERS = {"lanczos": "lanczos3", "bilinear": "bilinear", "bicubic": "catmull_rom", "box": "box"}
# Pictures much larger than needed are first averaged down to this many times the target, as by PIL's `reducing_gap`.
# Least cosine of photographs' embeddings: .9991 for 4, .9988 for 3, .995 for 2.
_REDUCING_GAP = 4.0
_WIDEST_FILTER = 3  # source pixels on either side of a target pixel, times the scale: Lanczos
Window = tuple[int, int, int, int]
Box = tuple[float, float, float, float]


def resized_window(image: Image.Image, size: tuple[int, int], window: Window, resample: str) -> NDArray[np.uint8]:
    """A window of the picture resized to `size`, as uint8 (height, width, 3).

    Args:
        image: RGB.
        size: (width, height) of the whole picture, resized.
        window: (left, top, right, bottom) of what is wanted of it.
        resample: a key of `FILTERS`.
    """
    if size == image.size:
        return np.asarray(image.crop(window))
    x_scale, y_scale = image.width / size[0], image.height / size[1]
    # Rounded products may lie a hair beyond the picture.
    right, bottom = min(window[2] * x_scale, image.width), min(window[3] * y_scale, image.height)
    box = (window[0] * x_scale, window[1] * y_scale, right, bottom)
    shape = (window[2] - window[0], window[3] - window[1])
    if resample in _RUST_FILTERS and (rust := _rust()):
        return _resized_by_rust(rust, *_needed(image, box, shape), shape, resample)
    return np.asarray(image.resize(shape, FILTERS[resample], box=box, reducing_gap=_REDUCING_GAP))


@cache
def _rust() -> ModuleType | None:
    try:
        import cykooz_resizer
    except ImportError:
        return None
    return cykooz_resizer


def _needed(image: Image.Image, box: Box, shape: tuple[int, int]) -> tuple[Image.Image, Box]:
    """The part of the picture that the filter sees, averaged by whole numbers if it is large, and the box in it."""
    scales = [(box[i + 2] - box[i]) / shape[i] for i in (0, 1)]
    x, y = (int(scale / _REDUCING_GAP) or 1 for scale in scales)
    margins = [math.ceil(_WIDEST_FILTER * max(scale, 1)) + 1 for scale in scales]
    # Whole blocks of the averaging, counted from the picture's own corner.
    left, top = ((max(0, int(box[i]) - margins[i])) // n * n for i, n in ((0, x), (1, y)))
    right, bottom = (min(image.size[i], math.ceil(box[i + 2]) + margins[i]) for i in (0, 1))
    part = (left, top, right, bottom)
    inner = ((box[0] - left) / x, (box[1] - top) / y, (box[2] - left) / x, (box[3] - top) / y)
    return image.crop(part) if x == y == 1 else image.reduce((x, y), part), inner


def _resized_by_rust(
    rust: ModuleType, image: Image.Image, box: Box, shape: tuple[int, int], resample: str
) -> NDArray[np.uint8]:
    (left, wide), (top, tall) = (_within(box[i], box[i + 2], image.size[i]) for i in (0, 1))
    # Bytes and not the picture itself: that way would read Pillow's private structures.
    pixels = rust.ImageData(*image.size, rust.PixelType.U8x3, image.tobytes())
    algorithm = rust.ResizeAlg.convolution(rust.FilterType[_RUST_FILTERS[resample]])
    # Widths, then heights, as Pillow does: both round to bytes in between; rounded otherwise, a quarter of all values
    # differ by one, which grainy pictures' embeddings feel (cosine .9995; so, .99999).
    passes = (
        ((shape[0], image.height), rust.CropBox(left, 0, wide, image.height)),
        (shape, rust.CropBox(0, top, shape[0], tall)),
    )
    for size, crop_box in passes:
        target = rust.ImageData(*size, rust.PixelType.U8x3)
        options = rust.ResizeOptions(resize_alg=algorithm, crop_box=crop_box, use_alpha=False)
        rust.Resizer().resize(pixels, target, options)
        pixels = target
    return np.frombuffer(pixels.get_buffer(), np.uint8).reshape(shape[1], shape[0], 3)


def _within(start: float, stop: float, length: int) -> tuple[float, float]:
    """(start, length) whose sum, rounded, is not beyond the picture: what is by one bit would be refused."""
    wide = min(stop, length) - start
    while start + wide > length:
        wide = math.nextafter(wide, 0.0)
    return start, wide
