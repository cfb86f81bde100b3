"""Which column or key holds the image, and which the label, when nobody says so."""

from __future__ import annotations

import re
from collections.abc import Sequence

from must_jax.errors import UserError

IMAGE_FIELDS = (
    "path",
    "filepath",
    "imagepath",
    "file",
    "filename",
    "imagefile",
    "image",
    "imagename",
    "img",
)
LABEL_FIELDS = ("label", "labelid", "class", "classname", "classid", "category", "target")


def find_field(fields: Sequence[str], *, named: str, usual: Sequence[str]) -> str | None:
    """The field that is called `named`, or else the first that has a usual name.

    Case does not count, and neither do `_`, `-`, `.` and spaces.
    """
    by_key: dict[str, str] = {}
    for field in fields:
        by_key.setdefault(_key(field), field)
    found = (by_key.get(_key(name)) for name in ([named] if named else usual))
    return next((field for field in found if field is not None), None)


def no_image_field(path: str, fields: Sequence[str], *, named: str, what: str) -> UserError:
    """The refusal of a source in which no field is the image."""
    looked = f"no {what} is called {named!r}" if named else f"no {what} has a usual name for images"
    return UserError(
        f"{path}: {looked}; it has {', '.join(map(repr, fields))}; "
        "say which with config.dataset.image_field"
    )


def _key(name: str) -> str:
    return re.sub(r"[\s_.-]", "", name).casefold()
