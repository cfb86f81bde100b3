"""Antialiased bicubic resampling, as Pillow's, by vector instructions (cykooz-resizer)."""

from __future__ import annotations

import threading

from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer
from PIL import Image

# Pillow's BICUBIC is the Catmull-Rom spline, stretched where it shrinks; so is this one.
_BICUBIC = ResizeAlg.convolution(FilterType.catmull_rom)
_local = threading.local()  # a resizer keeps its buffers


def resized(
    image: Image.Image, size: tuple[int, int], *, box: tuple[int, int, int, int] | None = None
) -> Image.Image:
    """Resamples an RGB image, or a box of it, to (width, height) pixels.

    Both round and clip to 8 bits between the two directions, which come in another order than
    Pillow's: on photographs that leaves a fifth of a grey level between the two, on noise more.

    Args:
        image: RGB.
        size: Of the result, pixels.
        box: Left, top, right, bottom, pixels.
    """
    if not hasattr(_local, "resizer"):
        _local.resizer = Resizer()
    result = Image.new("RGB", size)
    left, top, right, bottom = box or (0, 0, *image.size)
    crop = CropBox(left, top, right - left, bottom - top)
    _local.resizer.resize_pil(image, result, ResizeOptions(resize_alg=_BICUBIC, crop_box=crop))
    return result
