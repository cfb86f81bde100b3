"""Digit shapes from font files that pip installs: each digit of each face, drawn once."""

import dataclasses
import importlib.util
import json
import os
import pathlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from must_jax.errors import UserError

REQUIREMENTS = pathlib.Path(__file__).with_name("fonts.txt")
SHAPE_SIZE = 64
FACES_PER_FAMILY = 6

# Never drawn for training: they measure how a CLIP does on faces that it has not seen.
HELD_OUT_FAMILIES = frozenset(
    {
        "fontpkg-abel",
        "fontpkg-bitter",
        "fontpkg-delius",
        "fontpkg-fredoka",
        "fontpkg-inter",
        "fontpkg-kalam",
        "fontpkg-playfair-display",
        "fontpkg-space-mono",
    }
)

_DRAWN_HEIGHT = 52
_DRAWN_WIDTH = 56
_POINT_SIZE = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Face:
    """One face of one family: a font file and, where the file is variable, one weight of it."""

    family: str
    path: pathlib.Path
    weight: float | None
    category: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shapes:
    """The digits of F faces.

    Attributes:
      ink: (F, 10, SHAPE_SIZE, SHAPE_SIZE) uint8, how much ink covers each pixel.
      category: F names such as `serif` or `script`.
    """

    ink: np.ndarray
    category: tuple[str, ...]


def families() -> list[str]:
    """The pip names of the font packages, in `fonts.txt`'s order."""
    return [line.split("==")[0] for line in REQUIREMENTS.read_text().split() if line]


def _package_files(family: str) -> tuple[pathlib.Path, list[pathlib.Path]]:
    spec = importlib.util.find_spec(family.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"font package {family} is not installed; "
            f"run: pip install --no-deps -r {os.path.relpath(REQUIREMENTS)}"
        )
    folder = pathlib.Path(next(iter(spec.submodule_search_locations)))
    return folder, sorted([*folder.rglob("*.ttf"), *folder.rglob("*.otf")])


def _category(folder: pathlib.Path) -> str:
    metadata = folder / "metadata.json"
    if not metadata.is_file():  # the two packages of hand-drawn fonts have none
        return "script"
    name = json.loads(metadata.read_text())["category"][0].lower().replace("_", " ")
    return "script" if name == "handwriting" else name


def _weights(path: pathlib.Path) -> list[float | None]:
    """Lightest, middle and heaviest weight of a variable file; [None] for a static one."""
    if "wght" not in path.name:
        return [None]
    for axis in ImageFont.truetype(path, _POINT_SIZE).get_variation_axes():
        if axis["name"] in (b"Weight", "Weight"):
            low, high = axis["minimum"], axis["maximum"]
            return [low, (low + high) / 2, high]
    return [None]


def find_faces(*, held_out: bool) -> list[Face]:
    """The faces to train on, or the held-out ones, in a fixed order.

    Raises:
      UserError: a package of `fonts.txt` is not installed.
    """
    faces = []
    for family in families():
        if (family in HELD_OUT_FAMILIES) != held_out:
            continue
        folder, paths = _package_files(family)
        category = _category(folder)
        found = [
            Face(family=family, path=path, weight=weight, category=category)
            for path in paths
            for weight in _weights(path)
        ]
        picks = np.linspace(0, len(found) - 1, min(len(found), FACES_PER_FAMILY)).round()
        faces += [found[int(pick)] for pick in picks]
    return faces


def _open(face: Face) -> ImageFont.FreeTypeFont:
    font = ImageFont.truetype(face.path, _POINT_SIZE)
    if face.weight is not None:
        axes = font.get_variation_axes()
        font.set_variation_by_axes(
            [
                face.weight if axis["name"] in (b"Weight", "Weight") else axis["default"]
                for axis in axes
            ]
        )
    return font


def draw_digit(font: ImageFont.FreeTypeFont, digit: int) -> np.ndarray:
    """One digit's ink, (SHAPE_SIZE, SHAPE_SIZE) uint8, centred and as large as its box allows."""
    canvas = Image.new("L", (4 * _POINT_SIZE, 4 * _POINT_SIZE))
    ImageDraw.Draw(canvas).text((_POINT_SIZE, _POINT_SIZE), str(digit), fill=255, font=font)
    glyph = canvas.crop(canvas.getbbox())
    scale = min(_DRAWN_HEIGHT / glyph.height, _DRAWN_WIDTH / glyph.width)
    size = (max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale)))
    shape = Image.new("L", (SHAPE_SIZE, SHAPE_SIZE))
    corner = ((SHAPE_SIZE - size[0]) // 2, (SHAPE_SIZE - size[1]) // 2)
    shape.paste(glyph.resize(size, Image.Resampling.BOX), corner)
    return np.asarray(shape)


def draw_shapes(faces: list[Face]) -> Shapes:
    """All ten digits of each face."""
    ink = [[draw_digit(font, digit) for digit in range(10)] for font in map(_open, faces)]
    return Shapes(ink=np.asarray(ink, np.uint8), category=tuple(face.category for face in faces))
