"""Descriptions of classes, in CuPL's form, and what is refused in them."""

import json

import pytest

from must_jax.class_names import ClassNames, read_descriptions
from must_jax.errors import UserError

CLASSES = ClassNames(
    synonyms=(("cat", "puss"), ("sea lion",), ("t-shirt", "tee shirt")), folders=("n1", "n2", "n3")
)
COMPLETE = {"cat": ["It purrs.", "It bites."], "sea lion": ["It barks."], "t-shirt": ["It fits."]}


@pytest.fixture
def write(tmp_path):
    def write(content, ending=".json"):
        path = tmp_path / f"descriptions{ending}"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


@pytest.mark.parametrize(
    "keys",
    [
        ("cat", "sea lion", "t-shirt"),
        ("puss", "Sea_Lion", "Tee Shirt"),  # a synonym, the name of a folder, another case
        ("n1", "n2", "N3"),
        ("cat", " sea  lion", "t shirt"),
    ],
)
def test_a_key_is_any_name_of_its_class(write, keys):
    sentences = list(COMPLETE.values())
    path = write(dict(reversed(list(zip(keys, sentences, strict=True)))))
    assert read_descriptions(path, classes=CLASSES) == (
        ("It purrs.", "It bites."),
        ("It barks.",),
        ("It fits.",),
    )


def test_yaml_and_single_sentences_will_do(write):
    path = write("cat: It purrs.\nsea lion: [It barks.]\nt-shirt:\n  - It fits.\n", ".yaml")
    assert read_descriptions(path, classes=CLASSES) == (
        ("It purrs.",),
        ("It barks.",),
        ("It fits.",),
    )


def test_a_sentence_may_be_said_twice(write):
    path = write(COMPLETE | {"cat": ["It purrs.", "It purrs."]})
    assert read_descriptions(path, classes=CLASSES)[0] == ("It purrs.", "It purrs.")


def test_classes_need_no_folders(write):
    classes = ClassNames((("cat",),))
    assert read_descriptions(write({"Cat": ["It purrs."]}), classes=classes) == (("It purrs.",),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"cat": ["a"], "t-shirt": ["b"]}, ": no descriptions of 'sea lion'; every class needs"),
        ({"cat": ["a"]}, ": no descriptions of 'sea lion', 't-shirt'; every"),
        (COMPLETE | {"cat": []}, ": no descriptions of 'cat'"),
        (COMPLETE | {"catt": ["c"]}, ": no class is called 'catt'; nearest to the first: 'cat'"),
        (
            {f"dog {i}": ["x"] for i in range(7)},
            ": no class is called 'dog 0', 'dog 1', 'dog 2', 'dog 3', 'dog 4' and 2 more; nearest",
        ),
        (COMPLETE | {"n1": ["c"]}, ": key 'n1': 'cat' is described under 'cat' already"),
        ('{"cat": ["a"], "cat": ["b"]}', ": key 'cat': 'cat' is described under 'cat' already"),
        (COMPLETE | {"cat": ["It purrs.", 3]}, ": key 'cat': expected a text in quotes, it is 3"),
        (COMPLETE | {"cat": ["It purrs.", ""]}, ": key 'cat': empty text"),
        (COMPLETE | {"cat": {"a": "b"}}, ": key 'cat': expected a text in quotes"),
        ([["It purrs."]], ": item 1: expected a class name and its sentences"),
        ({}, ": no descriptions in it"),
        ("{", ":1: not JSON"),
    ],
)
def test_what_is_refused(write, content, message):
    path = write(content)
    with pytest.raises(UserError) as error:
        read_descriptions(path, classes=CLASSES)
    assert str(error.value).startswith(f"{path}{message}")
    assert "\n" not in str(error.value)


def test_a_key_that_two_classes_answer_to_is_refused(write):
    classes = ClassNames(synonyms=(("crane",), ("digger",)), folders=("bird", "crane"))
    with pytest.raises(UserError, match="'crane' stands for the classes 'crane' and 'digger'"):
        read_descriptions(write({"crane": ["a"], "digger": ["b"]}), classes=classes)


def test_text_files_are_no_descriptions(write):
    with pytest.raises(UserError, match=r"expected a \.json or \.yaml file"):
        read_descriptions(write("cat", ".txt"), classes=CLASSES)


def test_a_thousand_wrong_keys_are_told_at_once(write):
    """The nearest names take long to find: one is enough."""
    classes = ClassNames(tuple((f"class number {i}",) for i in range(1000)))
    content = {f"klass number {i}": ["x"] for i in range(1000)}
    with pytest.raises(UserError, match="and 995 more; nearest to the first: 'class number 0'"):
        read_descriptions(write(content), classes=classes)
