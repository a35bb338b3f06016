"""Fast resizing with a crop: computes only what the crop keeps, with SIMD code if it is installed.

`cykooz_resizer` (the Rust crate fast_image_resize) computes Pillow's own convolutions, to 2/255, ten times as fast. It
has no wheels for some platforms; there Pillow does the same more slowly.
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
# Pictures much larger than needed are first averaged down to this many times the target, as PIL's `reducing_gap` does.
# Least cosine between photographs' embeddings with and without: .9991 for 4, .9988 for 3, .995 for 2.
_REDUCING_GAP = 4.0
_WIDEST_FILTER = 3  # radius of Lanczos, the widest filter, in source pixels at scale 1
Window = tuple[int, int, int, int]
Box = tuple[float, float, float, float]


def resized_window(image: Image.Image, size: tuple[int, int], window: Window, resample: str) -> NDArray[np.uint8]:
    """A window of the resized picture, uint8 (height, width, 3).

    Args:
        image: RGB.
        size: (width, height) to which the whole picture would be resized.
        window: (left, top, right, bottom) of the wanted part, in pixels of the resized picture.
        resample: name of the filter, a key of `FILTERS`.
    """
    if size == image.size:
        return np.asarray(image.crop(window))
    x_scale, y_scale = image.width / size[0], image.height / size[1]
    # Rounding may put a product slightly beyond the picture.
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
    """The part of the picture that the filter sees, averaged by whole factors if it is large; and the box within it."""
    scales = [(box[i + 2] - box[i]) / shape[i] for i in (0, 1)]
    x, y = (int(scale / _REDUCING_GAP) or 1 for scale in scales)
    margins = [math.ceil(_WIDEST_FILTER * max(scale, 1)) + 1 for scale in scales]
    # Align to whole blocks of the averaging, counted from the picture's own corner.
    left, top = ((max(0, int(box[i]) - margins[i])) // n * n for i, n in ((0, x), (1, y)))
    right, bottom = (min(image.size[i], math.ceil(box[i + 2]) + margins[i]) for i in (0, 1))
    part = (left, top, right, bottom)
    inner = ((box[0] - left) / x, (box[1] - top) / y, (box[2] - left) / x, (box[3] - top) / y)
    return image.crop(part) if x == y == 1 else image.reduce((x, y), part), inner


def _resized_by_rust(
    rust: ModuleType, image: Image.Image, box: Box, shape: tuple[int, int], resample: str
) -> NDArray[np.uint8]:
    (left, wide), (top, tall) = (_within(box[i], box[i + 2], image.size[i]) for i in (0, 1))
    # Pass bytes, not the picture: for a picture, the crate reads Pillow's private structures.
    pixels = rust.ImageData(*image.size, rust.PixelType.U8x3, image.tobytes())
    algorithm = rust.ResizeAlg.convolution(rust.FilterType[_RUST_FILTERS[resample]])
    # Widths first, then heights, as in Pillow: both round to bytes in between. In the other order a quarter of all
    # values differ by one, which changes the embeddings of grainy pictures (cosine .9995 instead of .99999).
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
    """(start, length) whose rounded sum does not exceed the picture: the crate refuses an excess of a single bit."""
    wide = min(stop, length) - start
    while start + wide > length:
        wide = math.nextafter(wide, 0.0)
    return start, wide
