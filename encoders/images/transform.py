"""The preprocessing of an image tower as plain data: resize and crop in uint8, then scale and normalise."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from encoders.digest import digest_json

if TYPE_CHECKING:
    import torch

Kind = Literal["resize", "shortest_edge", "patches"]
_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
_IMAGE_KEYS = {"image_mean", "size", "max_num_patches", "image_processor_type", "feature_extractor_type"}
# Defaults of the processor classes for absent keys; an absent mean or std is 0.5.
_OPENAI = {"image_mean": (0.48145466, 0.4578275, 0.40821073), "image_std": (0.26862954, 0.26130258, 0.27577711)}
_CLIP = {"size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True, **_OPENAI}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIP": _CLIP,
    "ChineseCLIP": _CLIP,
    "Bit": _CLIP,
    "ConvNext": {"size": {"shortest_edge": 384}, "crop_pct": 224 / 256},
    "Siglip2": {"resample": 2, "patch_size": 16, "max_num_patches": 256},
    "Siglip": {"size": {"height": 224, "width": 224}},
    "ViT": {"resample": 2},
}
# In these families `size: 224`, as in the first CLIP checkpoints, means the shortest edge; in others it means a square.
_EDGE_FAMILIES = {"CLIP", "ChineseCLIP", "Bit", "Siglip"}
_REFUSED = (
    "do_pad",
    "do_flip_channel_order",
    "do_thumbnail",
    "do_align_long_axis",
    "do_color_quantize",
    "rescale_offset",
    "size_divisor",
    "ensure_multiple_of",
)


@dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """Preprocessing of an image tower.

    Attributes:
        kind: `resize`: to (height, width), whatever the aspect; `shortest_edge`: the shortest edge to a length, then a
            centre crop if `crop` is given; `patches`: keeps the aspect, both sides multiples of `patch_size`, at most
            `max_patches` patches.
        size: (height, width) in pixels; for `shortest_edge` the edge's length twice; None keeps the size.
        crop: (height, width) of the centre crop in pixels; smaller pictures are padded with black.
        resample: PIL's name of the filter, in lower case.
        scale: factor from uint8 to the range of `mean` and `std`.
        mean: mean of each channel (red, green, blue), subtracted after scaling.
        std: standard deviation of each channel, the divisor after that.
        patch_size: side of a patch in pixels, for `patches`.
        max_patches: the most patches of a picture, for `patches`.
    """

    kind: Kind = "resize"
    size: tuple[int, int] | None = (224, 224)
    crop: tuple[int, int] | None = None
    resample: str = "bicubic"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    patch_size: int = 16
    max_patches: int = 256

    def __post_init__(self) -> None:
        """Check the fields, so that a typing error is found on the driver and not in every worker."""
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind: {self.kind!r} is unknown; give one of {', '.join(get_args(Kind))}")
        if self.resample not in _RESAMPLE:
            raise ValueError(f"resample: {self.resample!r} is unknown; give one of {', '.join(_RESAMPLE)}")
        if self.kind == "shortest_edge" and (self.size is None or self.size[0] != self.size[1]):
            raise ValueError(f"size: {self.size} does not fit kind 'shortest_edge'; give the edge's length twice")

    @property
    def digest(self) -> str:
        """Digest of the transform, 16 hex digits."""
        return digest_json(self.to_dict())

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """(height, width) of every prepared picture; None if sizes vary."""
        return self.crop or (self.size if self.kind == "resize" else None)

    @property
    def pixel_bytes(self) -> int:
        """Bytes of one prepared picture; the maximum if sizes vary."""
        if self.kind == "patches":
            return self.max_patches * self.patch_size**2 * 3
        height, width = self.crop or self.size or (512, 512)
        return height * width * 3

    def to_dict(self) -> dict[str, Any]:
        """The transform as JSON-ready data."""
        return dict(json.loads(json.dumps(asdict(self))))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ImageTransform:
        """The inverse of `to_dict`."""
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
        return cls(**fields)

    def normalise(self, pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """n pictures of one size, uint8 (height, width, 3) → float32 (n, 3, height, width)."""
        batch = np.stack(pixels).astype(np.float32)
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        batch = (batch * np.float32(self.scale) - mean) / std
        return np.ascontiguousarray(batch.transpose(0, 3, 1, 2))

    def normalise_tensor(self, pixels: torch.Tensor) -> torch.Tensor:
        """`normalise` with torch operations on uint8 (n, height, width, 3): the same bits, on the tensor's device.

        Returns:
            float32 (n, 3, height, width), channels last in memory.
        """
        import torch

        mean, std = (torch.tensor(values, device=pixels.device) for values in (self.mean, self.std))
        return ((pixels.float() * self.scale - mean) / std).permute(0, 3, 1, 2)

    def target_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) that a picture is resized to, before any crop."""
        if self.kind == "patches":
            return _patched_size(width, height, self.patch_size, self.max_patches)
        if self.size is None:
            return width, height
        if self.kind == "resize":
            return self.size[1], self.size[0]
        edge = self.size[0]
        short, long = sorted((width, height))
        scaled = max(1, int(edge * long / short))
        return (edge, scaled) if width <= height else (scaled, edge)


def load_transform(directory: Path) -> ImageTransform:
    """The transform of a model directory.

    It is read from the image processor in `processor_config.json`, where transformers 5 nests it and looks first, else
    from `preprocessor_config.json`.

    Raises:
        FileNotFoundError: the directory has neither file.
        ValueError: the processor does something that isthmus cannot reproduce.
    """
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (directory / name).is_file():
            config = json.loads((directory / name).read_text())
            config = config.get("image_processor", config)
            if isinstance(config, dict) and _IMAGE_KEYS & config.keys():
                return from_processor_config(config)
    raise FileNotFoundError(
        f"{directory}: holds no preprocessor_config.json; save the model's image processor there "
        "(AutoImageProcessor.save_pretrained)"
    )


def from_processor_config(config: dict[str, Any]) -> ImageTransform:
    """The transform that a transformers image processor's configuration describes.

    Absent keys take the defaults of the processor's class, as in transformers.

    Raises:
        ValueError: the configuration has a rule that isthmus does not know.
    """
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    family = next((name for name in _DEFAULTS if kind.startswith(name)), "")
    config = _DEFAULTS.get(family, {}) | {name: value for name, value in config.items() if value is not None}
    if refused := sorted(name for name in _REFUSED if config.get(name)):
        raise ValueError(f"image processor {kind}: {refused[0]}={config[refused[0]]!r} is not known to isthmus")
    common = _pixel_rules(config)
    if "max_num_patches" in config:
        patches: dict[str, Any] = {
            "patch_size": int(config["patch_size"]),
            "max_patches": int(config["max_num_patches"]),
        }
        return ImageTransform(kind="patches", size=None, **patches, **common)
    crop = _pair(config["crop_size"]) if config.get("do_center_crop") and config.get("crop_size") else None
    if not config.get("do_resize", True):
        return ImageTransform(size=None, crop=crop, **common)
    size = config.get("size", 224)
    if "crop_pct" in config:
        return _convnext(size, float(config["crop_pct"]), common)
    if isinstance(size, (int, float)) and family in _EDGE_FAMILIES:
        size = {"shortest_edge": size}
    if isinstance(size, dict) and size.keys() == {"shortest_edge"}:
        edge = int(size["shortest_edge"])
        return ImageTransform(kind="shortest_edge", size=(edge, edge), crop=crop, **common)
    if isinstance(size, dict) and size.keys() != {"height", "width"}:
        raise ValueError(f"image processor {kind}: size={size} is not a rule known to isthmus")
    return ImageTransform(kind="resize", size=_pair(size), crop=crop, **common)


def _pixel_rules(config: dict[str, Any]) -> dict[str, Any]:
    normalise = config.get("do_normalize", True)
    return {
        "resample": _RESAMPLE[int(config.get("resample", 3))],
        "scale": float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
        "mean": _channels(config.get("image_mean", 0.5)) if normalise else (0.0, 0.0, 0.0),
        "std": _channels(config.get("image_std", 0.5)) if normalise else (1.0, 1.0, 1.0),
    }


def _channels(value: Any) -> tuple[float, float, float]:
    red, green, blue = value if isinstance(value, (list, tuple)) else (value, value, value)
    return float(red), float(green), float(blue)


def _convnext(size: Any, crop_fraction: float, common: dict[str, Any]) -> ImageTransform:
    """The rule of ConvNeXt and ResNet: below 384 the shortest edge is size / crop fraction, followed by a crop."""
    edge = int(size["shortest_edge"]) if isinstance(size, dict) else int(size)
    if edge >= 384:
        return ImageTransform(kind="resize", size=(edge, edge), **common)
    larger = int(edge / crop_fraction)
    return ImageTransform(kind="shortest_edge", size=(larger, larger), crop=(edge, edge), **common)


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, dict):
        return int(size["height"]), int(size["width"])
    return (int(size), int(size)) if isinstance(size, (int, float)) else (int(size[0]), int(size[1]))


def _patched_size(width: int, height: int, patch: int, max_patches: int) -> tuple[int, int]:
    """The largest (width, height) of whole patches that keeps the aspect and stays within `max_patches` (NaFlex)."""

    def scaled(scale: float, length: int) -> int:
        return max(patch, math.ceil(scale * length / patch) * patch)

    low, high, tolerance = 1e-5 / 10, 100.0, 1e-5
    while high - low >= tolerance:
        middle = (low + high) / 2
        if scaled(middle, height) * scaled(middle, width) / patch**2 <= max_patches:
            low = middle
        else:
            high = middle
    return scaled(low, width), scaled(low, height)
