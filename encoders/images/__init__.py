"""Pictures: from bytes to upright RGB, and from RGB to the input of an image tower. Uses PIL and numpy, not torch."""

from encoders.images.decode import MAX_PIXELS, open_image
from encoders.images.errors import ImageError
from encoders.images.prepare import prepare, prepare_with_thumbnail
from encoders.images.thumbnail import thumbnail
from encoders.images.transform import ImageTransform

__all__ = ["MAX_PIXELS", "ImageError", "ImageTransform", "open_image", "prepare", "prepare_with_thumbnail", "thumbnail"]
