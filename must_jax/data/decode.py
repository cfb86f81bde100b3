"""Image files to 8-bit RGB."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UndecodableImageError(Exception):
    """A file that is missing, unreadable or not an image that can be used."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def decode_image(path: str) -> Image.Image:
    """Reads one image file.

    The first frame of an animation, turned upright by its EXIF orientation. Transparent pixels are
    laid on white, as `transformers`' CLIP image processor does; 16-bit grey is scaled to 8 bits.

    Args:
        path: An image file in any format that Pillow reads.

    Returns:
        A Pillow image of mode "RGB", at least 1 x 1.

    Raises:
        UndecodableImageError: The file cannot be read, is damaged or cut short, has more pixels
            than Pillow's decompression-bomb limit, or has no defined range (floating point).
    """
    try:
        # Read in one go: cheaper than Pillow's many small reads, above all on network storage.
        with Image.open(io.BytesIO(Path(path).read_bytes())) as image:
            image.load()
            return _to_rgb(_upright(image))
    except UnidentifiedImageError as error:
        raise UndecodableImageError(path, "not an image, or of an unknown format") from error
    # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error, DecompressionBombError
    # and more on damaged files; whichever it is, this file has no pixels for us.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UndecodableImageError(path, reason) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    # A broken tag block says nothing about the pixels, which did decode.
    except Exception:
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    if image.mode == "I" or image.mode.startswith("I;"):
        # Pillow's own conversion clips at 255 instead of scaling.
        levels = np.clip(np.asarray(image, np.int64), 0, 65535)
        image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
