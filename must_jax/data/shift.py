"""Shears and translations of an image: Pillow's affine transform where it is one-dimensional.

Pillow weighs 4 x 4 pixels in double precision; where no pixel leaves its row, or its column, only 4
of the 16 have any weight. Weights are rounded to 1/128 here, which makes a difference of one grey
level in a few percent of a photograph's pixels. As in Pillow, the cubic's parameter is -1 (that of
Pillow's resizing is -0.5), and a result is cut, not rounded, to whole levels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

# Weights are integers, in 128ths: four of them times pixels of -128 to 127 fit into 16 bits.
_BITS = 7
_ONE = 1 << _BITS
_BLOCK = 40_000  # bytes worked on at once, with what is made of them in a core's cache


def translate(
    pixels: np.ndarray, distance: float, *, axis: int, fill_color: tuple[int, int, int]
) -> np.ndarray:
    """Moves an image up or to the left.

    Args:
        pixels: uint8 (H, W, 3), RGB; left as they are.
        distance: Pixels; negative down or to the right.
        axis: 0 up, 1 to the left.
        fill_color: RGB, 0 to 255, for what has moved in from outside.

    Returns:
        uint8 (H, W, 3).
    """

    def part(image: np.ndarray, start: int, end: int) -> np.ndarray:
        return image[:, start:end] if axis else image[start:end]

    result = np.empty_like(pixels)
    result.reshape(len(pixels), -1)[:] = _row_of(fill_color, pixels.shape[1])
    size = pixels.shape[axis]
    # Only pixels whose centre comes from inside have a colour.
    first, end = max(math.ceil(-0.5 - distance), 0), min(math.ceil(size - 0.5 - distance), size)
    if first >= end:
        return result
    whole = math.floor(distance)
    start, stop = first + whole - 1, end + whole + 2
    inside = part(pixels, max(start, 0), min(stop, size))
    before, after = [part(pixels, 0, 1)] * -start, [part(pixels, size - 1, size)] * (stop - size)
    taps = np.concatenate([*before, inside, *after], axis, dtype=np.int16)
    taps -= 128
    (weights,) = _weights(np.array([distance - whole]))
    shown = end - first
    moved = _weighed((part(taps, i, i + shown) for i in range(4)), weights)
    part(result, first, end)[:] = moved
    return result


def shear(pixels: np.ndarray, slope: float, *, fill_color: tuple[int, int, int]) -> np.ndarray:
    """Moves every row to the left, each by `slope` pixels more than the one above it.

    Args:
        pixels: uint8 (H, W, 3), RGB; left as they are.
        slope: Negative to the right.
        fill_color: RGB, 0 to 255, for what has moved in from outside.

    Returns:
        uint8 (H, W, 3).
    """
    result = np.empty_like(pixels)
    shifts = slope * (np.arange(len(pixels)) + 0.5)
    rows = max(1, _BLOCK // pixels[0].size)
    for start in range(0, len(pixels), rows):
        block = slice(start, start + rows)
        result[block] = _shift_rows(pixels[block], shifts[block], fill_color)
    return result


def _shift_rows(
    pixels: np.ndarray, shifts: np.ndarray, fill_color: tuple[int, int, int]
) -> np.ndarray:
    _, width, channels = pixels.shape
    values = width * channels
    whole = np.floor(shifts).astype(np.int64)
    taps = _taps(pixels, whole)
    taps -= 128
    starts = range(0, 4 * channels, channels)
    weights = _weights(shifts - whole)[:, :, None]
    result = _weighed((taps[:, i : i + values] for i in starts), weights.transpose(1, 0, 2))
    first, end = (_ceil(x - shifts)[:, None] * channels for x in (-0.5, width - 0.5))
    position = np.arange(values, dtype=np.int32)
    outside = position < first
    outside |= position >= end
    mask = -outside.view(np.uint8)  # 255 where outside: a masked copy takes three times as long
    result &= ~mask
    mask &= _row_of(fill_color, width)
    result |= mask
    return result.reshape(pixels.shape)


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


def _weighed(taps: Iterable[np.ndarray], weights: Iterable[np.ndarray]) -> np.ndarray:
    """The sum of pixels less 128, each times its weight, as uint8 pixels; all int16."""
    first, *others = zip(taps, weights, strict=True)
    total = np.multiply(*first)
    product = np.empty_like(total)
    for tap, weight in others:
        np.multiply(tap, weight, out=product)
        total += product
    total >>= _BITS
    total += 128
    np.clip(total, 0, 255, out=total)
    return total.astype(np.uint8)


def _row_of(color: tuple[int, int, int], width: int) -> np.ndarray:
    return np.tile(np.array(color, np.uint8), width)


def _ceil(x: np.ndarray) -> np.ndarray:
    return np.ceil(x).astype(np.int32)
