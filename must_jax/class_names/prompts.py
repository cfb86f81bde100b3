"""Prompt templates, and all that is said about a class."""

import os
from collections.abc import Sequence
from pathlib import Path

from must_jax.class_names.descriptions import Descriptions
from must_jax.class_names.files import read_entries
from must_jax.class_names.names import ClassNames
from must_jax.errors import UserError

SLOT = "{}"
# Of a classifier. The names of ImageNet-21k, two a class, in 80 templates are 3.5 million texts.
MAX_TEXTS = 2**23
MAX_TEXT_LETTERS = 2**29  # in all of them


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


def check_texts(
    classes: ClassNames, templates: Sequence[str], descriptions: Descriptions | None = None
) -> None:
    """Refuses what `class_texts` would make gigabytes of, before it is made.

    Raises:
      UserError: there are more than `MAX_TEXTS` texts, or `MAX_TEXT_LETTERS` letters in them.
    """
    names = [name for synonyms in classes.synonyms for name in synonyms]
    sentences = [text for of_class in descriptions or () for text in of_class]
    count = len(names) * len(templates) + len(sentences)
    letters = (
        len(templates) * sum(map(len, names))
        + len(names) * sum(len(template) - len(SLOT) for template in templates)
        + sum(map(len, sentences))
    )
    if count > MAX_TEXTS or letters > MAX_TEXT_LETTERS:
        raise UserError(
            f"{len(names)} class names in {len(templates)} templates, and {len(sentences)} "
            f"descriptions, are {count:,} texts of {letters:,} letters; {MAX_TEXTS:,} texts of "
            f"{MAX_TEXT_LETTERS:,} letters are the most; use fewer templates"
        )


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

    Raises:
      UserError: they are too many or too long, as `check_texts` has it.
    """
    check_texts(classes, templates, descriptions)
    prompts = [
        tuple(template.replace(SLOT, name) for name in names for template in templates)
        for names in classes.synonyms
    ]
    sentences = descriptions or [()] * len(prompts)
    return tuple(said + more for said, more in zip(prompts, sentences, strict=True))
