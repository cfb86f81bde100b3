"""The files that docs/names.md shows, read as they are written there."""

import pathlib
import re

import pytest

from must_jax.class_names import (
    ClassNames,
    class_texts,
    read_class_names,
    read_descriptions,
    read_templates,
)

TEXT = (pathlib.Path(__file__).parents[1] / "docs" / "names.md").read_text()

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
DIGITS = ClassNames(tuple((word,) for word in WORDS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Each fenced block that follows a file's name, in a file of that name."""
    folder = tmp_path_factory.mktemp("names")
    blocks = re.findall(r"`(\w+\.\w+)`[^`]*:\n\n```\w*\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 9
    for name, content in blocks:
        (folder / name).write_text(content)
    return folder


def test_names(folder):
    fish = ("tench",), ("goldfish", "Carassius auratus"), ("great white shark", "white shark")
    assert read_class_names(folder / "classes.txt").names == tuple(names[0] for names in fish)
    for ending in ("tsv", "json", "yaml"):
        classes = read_class_names(folder / f"classes.{ending}")
        assert classes.synonyms == fish
        assert classes.folders == ("n01440764", "n01443537", "n01484850")
    assert read_class_names(folder / "pets.yaml").synonyms == (
        ("cat", "domestic cat", "house cat"),
        ("dog",),
        ("no",),
    )


def test_templates_and_descriptions(folder):
    classes = read_class_names(folder / "classes.json")
    digits = read_descriptions(folder / "digits.yaml", classes=DIGITS)
    assert [len(said) for said in digits] == [2] + [1] * 9
    assert read_templates(folder / "templates.yaml") == ("a photo of a {}.", "{}")
    templates = read_templates(folder / "templates.txt")
    descriptions = read_descriptions(folder / "descriptions.json", classes=classes)
    assert class_texts(classes, templates, descriptions)[1] == (
        "a photo of a goldfish.",
        "a blurry photo of the goldfish.",
        "a photo of a Carassius auratus.",
        "a blurry photo of the Carassius auratus.",
        "A goldfish is a small orange fish.",
        "Goldfish are often kept in bowls.",
    )
