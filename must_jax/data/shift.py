"""Rows of an image moved sideways, each by its own distance: shears and translations."""

from __future__ import annotations

import numpy as np
from PIL import Image

# Weights are integers, in 128ths: four of them times pixels of -128 to 127 fit into 16 bits.
_BITS = 7
_ONE = 1 << _BITS


def shift_rows(
    image: Image.Image, shifts: np.ndarray, *, fill_color: tuple[int, int, int]
) -> Image.Image:
    """Moves every row to the left, as Pillow's bicubic affine transform would.

    Pillow weighs 4 x 4 pixels in double precision; where no pixel leaves its row, 4 of the 16 have
    any weight. Results differ by the rounding of the weights to 1/128: one grey level on a few
    percent of a photograph's pixels. As in Pillow, the cubic's parameter is -1 (that of
    Pillow's resizing is -0.5), and a result is cut, not rounded, to whole levels.

    Args:
        image: RGB, W x H; left as it is.
        shifts: float (H,), pixels; negative to the right.
        fill_color: RGB, 0 to 255, for what has moved in from outside.

    Returns:
        An RGB image of the same size.
    """
    pixels = np.asarray(image)
    _, width, channels = pixels.shape
    values = width * channels
    whole = np.floor(shifts).astype(np.int64)
    taps = _taps(pixels, whole)
    taps -= 128
    weights = _weights(shifts - whole)
    moved = taps[:, :values] * weights[:, :1]
    product = np.empty_like(moved)
    for i in range(1, 4):
        start = i * channels
        np.multiply(taps[:, start : start + values], weights[:, i : i + 1], out=product)
        moved += product
    moved >>= _BITS
    moved += 128
    np.clip(moved, 0, 255, out=moved)
    result = moved.astype(np.uint8)
    # A pixel is outside where its centre came from there.
    first = np.ceil(-0.5 - shifts)[:, None] * channels
    end = np.ceil(width - 0.5 - shifts)[:, None] * channels
    position = np.arange(values, dtype=np.int32)
    outside = position < first.astype(np.int32)
    outside |= position >= end.astype(np.int32)
    mask = -outside.view(np.uint8)  # 255 where outside: a masked copy takes three times as long
    result &= ~mask
    mask &= np.tile(np.array(fill_color, np.uint8), width)
    result |= mask
    return Image.fromarray(result.reshape(pixels.shape))


def _taps(pixels: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Every row from one pixel before its start to two past its end; int16 (H, (W + 3) * C)."""
    height, width, channels = pixels.shape
    margin = int(np.abs(whole).max()) + 2
    wide = np.zeros((height, width + 2 * margin + 1, channels), np.uint8)
    wide[:, margin : margin + width] = pixels
    # Of what is outside, no more than two pixels ever have a weight: the edge's.
    wide[:, margin - 2 : margin] = pixels[:, :1]
    wide[:, margin + width : margin + width + 2] = pixels[:, -1:]
    # One item for each run of bytes that a row could be, all overlapping: one copy a row.
    length = (width + 3) * channels
    runs = np.ndarray((wide.size - length + 1,), f"V{length}", wide, strides=(1,))
    starts = np.arange(height) * wide.strides[0] + (whole + margin - 1) * channels
    return runs[starts].view(np.uint8).reshape(height, length).astype(np.int16)


def _weights(t: np.ndarray) -> np.ndarray:
    """Of the four pixels around a point that is `t` of a pixel past the second; int16 (H, 4)."""
    exact = [t * (t * (2 - t) - 1), t * t * (t - 2) + 1, t * (t * (1 - t) + 1), t * t * (t - 1)]
    weights = np.rint(np.stack(exact, 1) * _ONE).astype(np.int16)
    # Rounded apart, they would brighten or darken whole rows.
    weights[:, 1] += _ONE - weights.sum(1, dtype=np.int16)
    return weights
