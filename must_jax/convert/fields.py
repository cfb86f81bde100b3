"""Reads and checks the fields of JSON configuration files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from must_jax.errors import UserError
from must_jax.local_files import read_text

# The statistics of OpenAI's training images (Radford et al., 2021; published with the weights).
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

_TOO_LARGE = 2**31  # for any size or number of a model


def read_json(path: Path) -> dict:
    """The JSON object in a file.

    Raises:
      UserError: the file is missing, unreadable, or no JSON object.
    """
    try:
        value = json.loads(read_text(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object")
    return value


def positive(config: Mapping[str, Any], name: str, *, where: str) -> int:
    """A field that is a positive integer.

    Raises:
      UserError: it is anything else.
    """
    value = config[name]
    if type(value) is not int or not 0 < value < _TOO_LARGE:
        raise UserError(f"{where}: {name} is {value!r:.40}, expected a positive integer")
    return value


def number(config: Mapping[str, Any], name: str, *, where: str) -> float:
    """A field that is a finite positive number.

    Raises:
      UserError: it is anything else.
    """
    value = config[name]
    if type(value) not in (int, float) or not 0 < value < _TOO_LARGE:
        raise UserError(f"{where}: {name} is {value!r:.40}, expected a positive number")
    return float(value)


def side(config: Mapping[str, Any], name: str, *, where: str) -> int:
    """The side of a square, in pixels: one integer, or two that are equal.

    Raises:
      UserError: it is anything else.
    """
    value = config[name]
    sides = list(value) if isinstance(value, list) else [value]
    if not all(type(s) is int and 0 < s < _TOO_LARGE for s in sides) or len(set(sides)) != 1:
        raise UserError(
            f"{where}: {name} is {value!r:.40}, but only square images and patches are supported"
        )
    return sides[0]


def image_and_patch(config: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """`image_size` and `patch_size`, in pixels.

    Raises:
      UserError: either is no square's side, or they don't divide.
    """
    image, patch = (side(config, name, where=where) for name in ("image_size", "patch_size"))
    if image % patch:
        raise UserError(f"{where}: image_size {image} is not a multiple of patch_size {patch}")
    return {"image_size": image, "patch_size": patch}


def statistics(
    config: Mapping[str, Any],
    name: str,
    *,
    default: tuple[float, float, float],
    is_positive: bool,
    where: str,
) -> tuple[float, float, float]:
    """A field of one number a colour (red, green, blue), for pixels in 0..1.

    Raises:
      UserError: it is anything else, or not positive where it has to be.
    """
    values = config.get(name)
    if values is None:
        return default
    if (
        not isinstance(values, (list, tuple))
        or len(values) != 3
        or not all(type(value) in (int, float) and abs(value) < _TOO_LARGE for value in values)
        or (is_positive and min(values) <= 0)
    ):
        raise UserError(f"{where}: {name} is {values!r:.80}, expected one number a colour")
    red, green, blue = (float(value) for value in values)
    return red, green, blue
