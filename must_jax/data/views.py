"""The weak, the strong and the evaluation view of an image (paper section 3.1)."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from must_jax.data import randaugment
from must_jax.data.resize import resized

ASPECT_RANGE = (3 / 4, 4 / 3)
_CROP_TRIES = 10
_MAX_RESIZED_ASPECT = 64

Box = tuple[int, int, int, int]


def evaluation_view(image: Image.Image, *, image_size: int) -> np.ndarray:
    """Resizes the short side and crops the centre, as CLIP's own image processor does.

    Args:
        image: RGB image of any size.
        image_size: Side R of the view, pixels.

    Returns:
        uint8 (R, R, 3).
    """
    short, long = sorted(image.size)
    resized_long = _resized_long(short, long, image_size)
    start = (resized_long - image_size) // 2
    wide = image.width >= image.height
    # Pixel for pixel what checkpoints were evaluated with, which the faster resampler is not.
    if long > _MAX_RESIZED_ASPECT * short:
        # A hair line, resized whole, would take gigabytes: cut first what the crop will show.
        first = min(start * short // image_size, long - short)
        box = (first, 0, first + short, short) if wide else (0, first, short, first + short)
        cut = image.crop(box).resize((image_size, image_size), Image.Resampling.BICUBIC)
        return np.asarray(cut)
    size = (resized_long, image_size) if wide else (image_size, resized_long)
    whole = image.resize(size, Image.Resampling.BICUBIC)
    end = start + image_size
    box = (start, 0, end, image_size) if wide else (0, start, image_size, end)
    return np.asarray(whole.crop(box))


def weak_view(pixels: np.ndarray, *, image_size: int, rng: np.random.Generator) -> np.ndarray:
    """Resizes the short side and crops at random; a square image has no randomness here.

    Args:
        pixels: uint8 (H, W, 3) of any size.
        image_size: Side R of the view, pixels.
        rng: Source of the crop's offset.

    Returns:
        uint8 (R, R, 3).
    """
    height, width, _ = pixels.shape
    short, long = sorted((height, width))
    resized_long = _resized_long(short, long, image_size)
    offset = int(rng.integers(resized_long - image_size + 1))
    # Only what the crop shows is resized, the others of its pixels would be thrown away.
    start, end = (min(x * long / resized_long, long) for x in (offset, offset + image_size))
    box = (start, 0, end, short) if width >= height else (0, start, short, end)
    return resized(pixels, (image_size, image_size), box=box)


def strong_view(
    pixels: np.ndarray,
    *,
    image_size: int,
    crop_area: tuple[float, float],
    flip_probability: float,
    rand_augment: randaugment.RandAugment,
    fill_color: tuple[int, int, int],
    rng: np.random.Generator,
) -> np.ndarray:
    """Random resized crop, horizontal flip, RandAugment.

    Args:
        pixels: uint8 (H, W, 3) of any size.
        image_size: Side R of the view, pixels.
        crop_area: Smallest and largest share of the image's area in the crop.
        flip_probability: Chance of a horizontal flip.
        rand_augment: What to draw operations from.
        fill_color: RGB, 0 to 255, for what geometric operations uncover.
        rng: Source of randomness.

    Returns:
        uint8 (R, R, 3).
    """
    height, width, _ = pixels.shape
    box = draw_crop(rng, width=width, height=height, crop_area=crop_area)
    view = Image.fromarray(resized(pixels, (image_size, image_size), box=box))
    if rng.random() < flip_probability:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for name, argument in rand_augment.draw(rng):
        view = randaugment.apply(view, name=name, argument=argument, fill_color=fill_color)
    return np.asarray(view)


def draw_crop(
    rng: np.random.Generator, *, width: int, height: int, crop_area: tuple[float, float]
) -> Box:
    """Draws the box of a random resized crop.

    Area uniform in `crop_area`, aspect ratio log-uniform in `ASPECT_RANGE`; after ten boxes that do
    not fit, the largest centred box of an allowed aspect ratio.

    Args:
        rng: Source of randomness.
        width: Width of the image, pixels.
        height: Height of the image, pixels.
        crop_area: Smallest and largest share of the image's area.

    Returns:
        Left, top, right, bottom, in pixels.
    """
    for _ in range(_CROP_TRIES):
        area = rng.uniform(*crop_area) * width * height
        aspect = math.exp(rng.uniform(math.log(ASPECT_RANGE[0]), math.log(ASPECT_RANGE[1])))
        crop_width = round(math.sqrt(area * aspect))
        crop_height = round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.integers(width - crop_width + 1))
            top = int(rng.integers(height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    crop_width = min(width, round(height * ASPECT_RANGE[1]))
    crop_height = min(height, round(width / ASPECT_RANGE[0]))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def smallest_side(*, image_size: int, crop_area: tuple[float, float]) -> int:
    """Short side from which no crop of `draw_crop` has fewer pixels than the view, either way."""
    return math.ceil(image_size / math.sqrt(ASPECT_RANGE[0] * crop_area[0]))


def _resized_long(short: int, long: int, size: int) -> int:
    """The long side once the short one is `size`."""
    # Truncated, not rounded: this is what CLIP was evaluated with.
    return int(size * long / short)
