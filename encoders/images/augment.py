"""Augmentation of training pictures: a random crop, a flip and slight colour changes, seeded per picture."""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image, ImageEnhance

Augmentation = Literal["none", "light", "strong"]
# (smallest share of the area that a crop keeps, probability of a flip, strength of the colour changes)
_STRENGTHS: dict[str, tuple[float, float, float]] = {"light": (0.75, 0.0, 0.1), "strong": (0.4, 0.5, 0.3)}
_ASPECT = (3 / 4, 4 / 3)


def augment(image: Image.Image, strength: Augmentation, seed: int) -> Image.Image:
    """Change a picture at random; the same picture, strength and seed give the same result.

    Args:
        image: RGB.
        strength: `none` changes nothing; `light` crops a little and shifts colours; `strong` crops more and also flips.
            A flip makes captions such as "left" wrong, so only `strong` flips.
        seed: seed of this picture in this step.
    """
    if strength == "none":
        return image
    smallest, flips, colour = _STRENGTHS[strength]
    random = np.random.default_rng(seed)
    image = image.crop(_window(image.size, smallest, random))
    if random.random() < flips:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = change(image).enhance(float(1 + random.uniform(-colour, colour)))
    return image


def _window(size: tuple[int, int], smallest: float, random: np.random.Generator) -> tuple[int, int, int, int]:
    """A random window (left, top, right, bottom) that covers at least `smallest` of the area."""
    wide, tall = size
    area, aspect = random.uniform(smallest, 1.0), np.exp(random.uniform(*np.log(_ASPECT)))
    w = min(wide, max(1, round(wide * float(np.sqrt(area * aspect)))))
    h = min(tall, max(1, round(tall * float(np.sqrt(area / aspect)))))
    left, top = int(random.integers(0, wide - w + 1)), int(random.integers(0, tall - h + 1))
    return left, top, left + w, top + h
