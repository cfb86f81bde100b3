"""Prompt templates, and all that is said about a class."""

import os
from collections.abc import Sequence
from pathlib import Path

from must_jax.class_names.descriptions import Descriptions
from must_jax.class_names.files import read_entries
from must_jax.class_names.names import ClassNames
from must_jax.errors import UserError

SLOT = "{}"


def read_templates(path: str | os.PathLike) -> tuple[str, ...]:
    """The prompt templates in a UTF-8 file, each with one `{}` for the class name.

    Text: one a line; blank lines and lines that start with `#` are passed over. JSON and YAML: a
    list.

    Raises:
      UserError: the file is unreadable or empty, a template hasn't one slot.
    """
    entries = read_entries(Path(path), what="templates", columns=False)
    for entry in entries:
        if entry.key is not None or len(entry.texts) != 1:
            raise UserError(f"{entry.place}: expected one template; give a list of them")
        (template,) = entry.texts
        if template.count(SLOT) != 1:
            raise UserError(
                f"{entry.place}: template {template!r} has {template.count(SLOT)} slots; "
                f"write {SLOT} once, where the class name goes"
            )
    return tuple(template for entry in entries for template in entry.texts)


def class_texts(
    classes: ClassNames, templates: Sequence[str], descriptions: Descriptions | None = None
) -> tuple[tuple[str, ...], ...]:
    """What each class's column is the mean of.

    Every synonym in every template, then the class's descriptions, which join CLIP's prompts as
    CuPL's do (Pratt et al., ICCV 2023; sarahpratt/CuPL, classify_imagenet.py): each text counts
    once, whatever it is.

    Args:
      classes: K classes.
      templates: prompts with a `{}` each, where the name goes.
      descriptions: of the K classes, whole sentences.

    Returns:
      K tuples of texts.
    """
    prompts = [
        tuple(template.replace(SLOT, name) for name in names for template in templates)
        for names in classes.synonyms
    ]
    sentences = descriptions or [()] * len(prompts)
    return tuple(said + more for said, more in zip(prompts, sentences, strict=True))
