"""Names that would take hours to be composed or compared."""

import pytest

from must_jax.class_names import read_class_names, read_descriptions
from must_jax.class_names.spelling import has_endless_marks, nearest
from must_jax.data.sources.classes import Classes
from must_jax.errors import UserError

ACUTE, GRAVE_BELOW = "\u0301", "\u0316"
START = "a" * 100


@pytest.mark.parametrize(
    ("text", "endless"),
    [
        ("a" * 99, False),
        ("e" + ACUTE * 30, False),
        ("e" + ACUTE * 31, True),
        ("e" + ACUTE * 20 + GRAVE_BELOW * 11 + "s", True),
        (f"e{ACUTE}" * 99, False),
        ("e" + "\u0f73" * 16, True),  # of two marks each, and no mark itself
    ],
)
def test_marks_in_a_row(text, endless):
    assert has_endless_marks(text) is endless


def test_a_class_with_endless_marks_is_found_as_it_is_written():
    marks = GRAVE_BELOW * 40
    classes = Classes(["e" + ACUTE + marks, "e" + ACUTE])
    assert classes.find("e" + ACUTE + marks) == 0
    assert classes.find("\u00e9" + marks) is None
    assert classes.find("\u00e9") == 1


def test_the_nearest_is_told_by_the_first_letters_of_the_first_names():
    # By all their letters, the second would be.
    assert Classes([START + "b" * 900, "a" * 99]).nearest(START + "c" * 900) == START + "b" * 900
    names = [f"dog {i}" for i in range(10_000)]
    assert nearest("cat", [*names[1:], "cat"]) == "cat"
    assert nearest("cat", [*names, "cat"]) != "cat"


def test_a_description_of_no_class_names_the_nearest(tmp_path):
    names, sentences = tmp_path / "names.txt", tmp_path / "sentences.json"
    names.write_text(f"{START}{'b' * 900}\n{'a' * 99}\n")
    sentences.write_text(f'{{"{START}{"c" * 900}": ["It is long."]}}')
    with pytest.raises(UserError, match=f"nearest to the first: '{START}b"):
        read_descriptions(sentences, classes=read_class_names(names))
