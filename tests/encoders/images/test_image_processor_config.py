"""Old, sparse and nested configurations beside weights. Misreading one silently costs recall."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as tf
from corpora import picture
from PIL import Image

from encoders.images import ImageTransform, prepare
from encoders.images.transform import from_processor_config, load_transform

# As published with openai/clip-vit-base-patch32: `size` is a number, which means the shortest edge.
FIRST_CLIP = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 224,
}
CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "first clip": (tf.CLIPImageProcessorPil, FIRST_CLIP),
    **{
        f"{name} {label}": (getattr(tf, f"{name}ImageProcessorPil"), config)
        for name in ("CLIP", "ChineseCLIP", "Bit", "Siglip", "ViT", "ConvNext")
        for label, config in {"silent": {}, "size a number": {"size": 112}}.items()
    },
    "no crop": (tf.CLIPImageProcessorPil, {"do_center_crop": False}),
    "one mean for all": (tf.ViTImageProcessorPil, {"image_mean": 0.4, "image_std": 0.3}),
    "no rescaling": (tf.ViTImageProcessorPil, {"do_rescale": False, "do_normalize": False}),
    "another factor": (tf.ViTImageProcessorPil, {"rescale_factor": 1 / 127.5}),
    "not square": (tf.ViTImageProcessorPil, {"size": {"height": 96, "width": 160}}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_is_read_as_its_own_class_reads_it(name: str) -> None:
    processor_class, config = CONFIGS[name]
    kind = processor_class.__name__.removesuffix("Pil")
    transform = from_processor_config({"image_processor_type": kind} | config)
    processor = processor_class.from_dict(dict(config))
    for size in ((200, 130), (97, 311)):
        data = picture(3, size=size, kind="PNG")
        theirs = processor(images=Image.open(io.BytesIO(data)).convert("RGB"), return_tensors="np")["pixel_values"]
        ours = transform.normalise([prepare(data, transform, "exact")])
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=1.001 * transform.scale / min(transform.std))


def test_a_silent_siglip2_has_its_classes_defaults() -> None:
    transform = from_processor_config({"image_processor_type": "Siglip2ImageProcessor"})
    assert (transform.kind, transform.resample) == ("patches", "bilinear")
    assert (transform.patch_size, transform.max_patches) == (16, 256)


def test_the_nested_configuration_comes_first(tmp_path: Path) -> None:
    """A directory saved again by transformers 5 may hold both; transformers reads the nested one."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(FIRST_CLIP))
    assert load_transform(tmp_path).size == (224, 224)
    nested = tf.CLIPImageProcessorPil(size={"shortest_edge": 60}).to_dict()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": nested}, default=str))
    assert load_transform(tmp_path).size == (60, 60)
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    assert load_transform(tmp_path).size == (224, 224)


@pytest.mark.parametrize(
    "rule",
    [
        {"size": {"shortest_edge": 300, "longest_edge": 400}},
        {"size": {"longest_edge": 300}},
        {"do_pad": True},
        {"do_flip_channel_order": True},
        {"rescale_offset": True},
    ],
)
def test_a_rule_that_cannot_be_repeated_is_refused(rule: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(rule))):
        from_processor_config({"image_processor_type": "OtherImageProcessor"} | rule)


@pytest.mark.parametrize(
    "wrong", [{"kind": "stretch"}, {"resample": "cubic"}, {"kind": "shortest_edge", "size": (2, 3)}]
)
def test_a_transform_refuses_what_it_cannot_do(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"kind|resample|size"):
        ImageTransform(**wrong)
