"""RandAugment over the fifteen operations whose strength grows with the magnitude.

The published recipe's `rand-m9-mstd0.5-inc1`: what to do is drawn first and applied afterwards, so
that a draw can be inspected, repeated and compared.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from must_jax.data.shift import shear, translate

MAX_MAGNITUDE = 10.0
OPERATIONS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
)
_ENHANCERS = {
    "Color": ImageEnhance.Color,
    "Contrast": ImageEnhance.Contrast,
    "Sharpness": ImageEnhance.Sharpness,
}
_FACTORS = {"Brightness", *_ENHANCERS}
_LARGEST = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3, "TranslateX": 0.45, "TranslateY": 0.45}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandAugment:
    """The distribution that operations are drawn from.

    Attributes:
        num_ops: Operations drawn per image, uniformly and with replacement; 0 switches it off.
        magnitude: Mean magnitude, on a scale of 0 to 10.
        magnitude_std: Standard deviation of the magnitude, which is clipped to 0..10.
        probability: Chance that a drawn operation is applied.
    """

    num_ops: int = 2
    magnitude: float = 9.0
    magnitude_std: float = 0.5
    probability: float = 0.5

    def draw(self, rng: np.random.Generator) -> list[tuple[str, float]]:
        """Draws the operations to apply to one image, as (name, argument of `apply`) pairs."""
        drawn = []
        for _ in range(self.num_ops):
            name = OPERATIONS[rng.integers(len(OPERATIONS))]
            if rng.random() >= self.probability:
                continue
            magnitude = min(max(rng.normal(self.magnitude, self.magnitude_std), 0), MAX_MAGNITUDE)
            sign = 1 if rng.random() < 0.5 else -1
            drawn.append((name, argument(name=name, magnitude=magnitude, sign=sign)))
        return drawn


def argument(*, name: str, magnitude: float, sign: int) -> float:
    """Translates a magnitude into what the operation takes.

    Args:
        name: One of `OPERATIONS`.
        magnitude: Strength, 0 to 10.
        sign: 1 or -1: the direction of the operations that have two.

    Returns:
        Degrees (Rotate), a slope (Shear), a fraction of the side (Translate), bits kept
        (Posterize), the threshold from which values are inverted (Solarize), what is added to
        values below 128 (SolarizeAdd), an enhancement factor that leaves the image alone at 1
        (Color, Contrast, Brightness, Sharpness), or 0 for the operations without strength.
    """
    level = magnitude / MAX_MAGNITUDE
    if name in _LARGEST:
        return sign * level * _LARGEST[name]
    if name in _FACTORS:
        return max(0.1, 1.0 + sign * level * 0.9)
    if name == "Posterize":
        return 4 - int(level * 4)
    if name == "Solarize":
        return 256 - int(level * 256)
    if name == "SolarizeAdd":
        return int(level * 110)
    return 0


def apply(
    pixels: np.ndarray, *, name: str, argument: float, fill_color: tuple[int, int, int]
) -> np.ndarray:
    """Applies one operation.

    Args:
        pixels: uint8 (H, W, 3), RGB; left as they are.
        name: One of `OPERATIONS`.
        argument: As `argument` returns it.
        fill_color: RGB, 0 to 255, for what a geometric operation uncovers.

    Returns:
        uint8 (H, W, 3).
    """
    height, width, _ = pixels.shape
    match name:
        case "Invert":
            return ~pixels
        case "Posterize":
            return pixels & np.uint8(0xFF & ~(0xFF >> int(argument)))
        case "Solarize":
            # All ones, of which the inverse is taken, from the threshold on.
            return pixels ^ -(pixels >= int(argument)).view(np.uint8)
        case "SolarizeAdd":
            return pixels + (pixels < 128) * np.uint8(argument)
        case "Brightness":
            return np.minimum(pixels * np.float32(argument), 255).astype(np.uint8)
        case "ShearX":
            return shear(pixels, argument, fill_color=fill_color)
        case "ShearY":
            columns = transposed(pixels, Image.Transpose.TRANSPOSE)
            sheared = shear(columns, argument, fill_color=fill_color)
            return transposed(sheared, Image.Transpose.TRANSPOSE)
        case "TranslateX":
            return translate(pixels, argument * width, axis=1, fill_color=fill_color)
        case "TranslateY":
            return translate(pixels, argument * height, axis=0, fill_color=fill_color)
    image = Image.fromarray(pixels)
    match name:
        case "AutoContrast":
            image = ImageOps.autocontrast(image)
        case "Equalize":
            image = ImageOps.equalize(image)
        case "Rotate":
            image = image.rotate(argument, Image.Resampling.BICUBIC, fillcolor=fill_color)
        case "Color" | "Contrast" | "Sharpness":
            image = _ENHANCERS[name](image).enhance(argument)
        case _:
            raise ValueError(f"unknown operation {name!r}")
    return np.asarray(image)


def transposed(pixels: np.ndarray, way: Image.Transpose) -> np.ndarray:
    """Turns or flips uint8 (H, W, 3); numpy's copies of three bytes at a time are slower."""
    return np.asarray(Image.fromarray(pixels).transpose(way))
