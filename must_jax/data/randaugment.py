"""RandAugment over the fifteen operations whose strength grows with the magnitude.

The published recipe's `rand-m9-mstd0.5-inc1`: what to do is drawn first and applied afterwards, so
that a draw can be inspected, repeated and compared.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from must_jax.data.shift import shift_rows

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
    "Brightness": ImageEnhance.Brightness,
    "Sharpness": ImageEnhance.Sharpness,
}
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
    if name in _ENHANCERS:
        return max(0.1, 1.0 + sign * level * 0.9)
    if name == "Posterize":
        return 4 - int(level * 4)
    if name == "Solarize":
        return 256 - int(level * 256)
    if name == "SolarizeAdd":
        return int(level * 110)
    return 0


def apply(
    image: Image.Image, *, name: str, argument: float, fill_color: tuple[int, int, int]
) -> Image.Image:
    """Applies one operation.

    Args:
        image: RGB image; left as it is.
        name: One of `OPERATIONS`.
        argument: As `argument` returns it.
        fill_color: RGB, 0 to 255, for what a geometric operation uncovers.

    Returns:
        An RGB image of the same size.
    """
    match name:
        case "AutoContrast":
            return ImageOps.autocontrast(image)
        case "Equalize":
            return ImageOps.equalize(image)
        case "Invert":
            return ImageOps.invert(image)
        case "Rotate":
            return image.rotate(argument, Image.Resampling.BICUBIC, fillcolor=fill_color)
        case "Posterize":
            # Pillow's own refuses to keep 0 bits, which leaves black.
            kept = 0xFF & ~(0xFF >> int(argument))
            return image.point([value & kept for value in range(256)] * 3)
        case "Solarize":
            return ImageOps.solarize(image, int(argument))
        case "SolarizeAdd":
            added = int(argument)
            dark = [min(255, value + added) for value in range(128)]
            return image.point([*dark, *range(128, 256)] * 3)
        case "Color" | "Contrast" | "Brightness" | "Sharpness":
            return _ENHANCERS[name](image).enhance(argument)
        case "ShearX":
            shifts = argument * (np.arange(image.height) + 0.5)
            return shift_rows(image, shifts, fill_color=fill_color)
        case "TranslateX":
            shifts = np.full(image.height, argument * image.width)
            return shift_rows(image, shifts, fill_color=fill_color)
        case "ShearY" | "TranslateY":
            sideways = apply(
                image.transpose(Image.Transpose.TRANSPOSE),
                name=name.replace("Y", "X"),
                argument=argument,
                fill_color=fill_color,
            )
            return sideways.transpose(Image.Transpose.TRANSPOSE)
    raise ValueError(f"unknown operation {name!r}")
