"""Pixels of all modes to 8-bit RGB."""

from __future__ import annotations

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

_PHOTOMETRIC, _BITS = 262, 258  # tags of a TIFF
_WHITE_IS_ZERO = 0
# What Pillow multiplies grey of two and of four bits by, but not the transparent one.
_FACTORS = {"L;2": 85, "L;4": 17}


def prepare(image: Image.Image) -> None:
    """Of an image that isn't loaded, brings the transparent colour to the range of its pixels.

    Raises:
        ValueError: Its pixels have no defined range.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    # Others of this mode are scaled to 16 bits by Pillow.
    if image.mode == "I" and isinstance(image, TiffImagePlugin.TiffImageFile):
        raise ValueError("signed or 32-bit integer pixels have no defined range")
    key = image.info.get("transparency")
    if isinstance(image, PngImagePlugin.PngImageFile) and key is not None and image.tile:
        raw = image.tile[0].args
        if raw == "RGB;16B":
            # All that is left of the pixels, too, is the high byte.
            image.info["transparency"] = tuple(level >> 8 for level in key)
        elif raw in _FACTORS:
            image.info["transparency"] = key * _FACTORS[raw]


def to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of more bits, scaled, and white where it is transparent; all else as it is.

    Args:
        image: As it was loaded, for its file's tags count.
    """
    if image.mode != "I" and not image.mode.startswith("I;"):
        return image
    top, is_inverted = 65535, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        top = 4095 if image.tag_v2.get(_BITS) == (12,) else top
        is_inverted = image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    levels = np.clip(np.asarray(image), 0, top).astype(np.uint32)
    key = image.info.get("transparency")
    clear = None if key is None else levels == key
    # Pillow's own conversion clips at 255 instead of scaling. In place, for they may be many.
    levels *= 255
    levels += top // 2
    levels //= top
    grey = levels.astype(np.uint8)
    if is_inverted:
        np.subtract(255, grey, out=grey)
    if clear is not None:
        grey[clear] = 255
    return Image.fromarray(grey)


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit pixels as RGB, transparent ones laid on white."""
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
