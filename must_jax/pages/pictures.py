"""Pictures that lie in the page itself."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

_LARGEST = 224  # pixels a side; larger views are shown smaller
_LOSSLESS = 64  # up to this side, where JPEG would show more of itself than of the picture


def data_address(pixels: np.ndarray, *, largest: int = _LARGEST) -> str:
    """A picture (R, R, 3) as a `data:` address, of `largest` pixels a side at most.

    PNG where it is small, else JPEG.
    """
    image = Image.fromarray(pixels)
    if max(image.size) > largest:
        image.thumbnail((largest, largest))
    small = max(image.size) <= _LOSSLESS
    file = io.BytesIO()
    image.save(file, "PNG" if small else "JPEG", optimize=True, quality=85)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
