"""Preprocessing that differs from a model's training silently costs recall."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from corpora import picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from encoders.images import ImageTransform, prepare
from encoders.images.transform import from_processor_config, load_transform

SIZES = [(640, 480), (480, 640), (333, 500), (64, 64), (31, 200), (200, 31), (3, 500), (1, 1), (225, 224), (50, 50)]
PROCESSORS: dict[str, Any] = {
    "clip": tf.CLIPImageProcessorPil(),
    "clip small": tf.CLIPImageProcessorPil(size={"shortest_edge": 60}, crop_size={"height": 60, "width": 60}),
    "crop larger than the picture": tf.CLIPImageProcessorPil(
        size={"shortest_edge": 40}, crop_size={"height": 56, "width": 56}
    ),
    "siglip": tf.SiglipImageProcessorPil(),
    "siglip2": tf.Siglip2ImageProcessorPil(max_num_patches=64),
    "chinese clip": tf.ChineseCLIPImageProcessorPil(),
    "vit": tf.ViTImageProcessorPil(),
    "resnet": tf.ConvNextImageProcessorPil(size={"shortest_edge": 224}, crop_pct=0.875),
    "convnext 384": tf.ConvNextImageProcessorPil(size={"shortest_edge": 384}, crop_pct=0.875),
    "dinov2": tf.BitImageProcessorPil(size={"shortest_edge": 256}, resample=3),
    "nothing done": tf.CLIPImageProcessorPil(do_resize=False, do_normalize=False, size={"shortest_edge": 9}),
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", SIZES)
def test_exact_preprocessing_is_the_familys_own(name: str, size: tuple[int, int]) -> None:
    processor = PROCESSORS[name]
    data = picture(size[0], size=size, kind="PNG")
    transform = from_processor_config(processor.to_dict())
    pixels = prepare(data, transform, "exact")
    theirs = processor(images=Image.open(io.BytesIO(data)).convert("RGB"), return_tensors="np")
    tolerance = 1.001 / 255 / min(transform.std)
    if transform.kind == "patches":
        from encoders.families.two_tower import patchify

        values, mask, shapes = patchify([pixels], transform)
        np.testing.assert_array_equal(shapes, theirs["spatial_shapes"])
        np.testing.assert_array_equal(mask, theirs["pixel_attention_mask"])
        np.testing.assert_allclose(values, theirs["pixel_values"], atol=tolerance)
        return
    ours = transform.normalise([pixels])
    assert ours.shape == theirs["pixel_values"].shape
    np.testing.assert_allclose(ours, theirs["pixel_values"], atol=tolerance)


@pytest.mark.parametrize("name", PROCESSORS)
def test_tensors_are_normalised_to_the_same_bits_where_they_are(name: str) -> None:
    transform = from_processor_config(PROCESSORS[name].to_dict())
    pixels = np.random.default_rng(0).integers(0, 256, (3, 17, 40, 3), np.uint8)
    found = transform.normalise_tensor(torch.from_numpy(pixels))
    np.testing.assert_array_equal(found.numpy(), transform.normalise(list(pixels)))
    assert found.is_contiguous(memory_format=torch.channels_last)
    # Nothing is created on another device than that of the pixels.
    assert transform.normalise_tensor(torch.empty(1, 4, 4, 3, dtype=torch.uint8, device="meta")).is_meta


@given(st.sampled_from(sorted(PROCESSORS)))
def test_a_transform_survives_json(name: str) -> None:
    transform = from_processor_config(PROCESSORS[name].to_dict())
    again = ImageTransform.from_dict(transform.to_dict())
    assert (again, again.digest) == (transform, transform.digest)


def test_a_directory_without_a_processor_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config\.json; save"):
        load_transform(tmp_path)
