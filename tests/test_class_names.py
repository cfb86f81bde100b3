"""Class names and templates in files of every kind, and what is refused in them."""

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from must_jax.class_names import ClassNames, class_texts, read_class_names, read_templates
from must_jax.errors import UserError


@pytest.fixture
def write(tmp_path):
    def write(content, ending=".txt"):
        path = tmp_path / f"names{ending}"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def classes(*names, folders=None):
    return ClassNames(tuple((n,) if isinstance(n, str) else n for n in names), folders)


@pytest.mark.parametrize(
    ("ending", "content", "expected"),
    [
        (".txt", "cat\ndog\n", classes("cat", "dog")),
        (".txt", "cat", classes("cat")),
        (".txt", "\ufeff# a comment\r\n\r\n  big cat \r\nétoile\r\n", classes("big cat", "étoile")),
        (".tsv", "b\tcat\na\t dog \n", classes("cat", "dog", folders=("b", "a"))),
        (".tsv", "b\tcat\tpuss\na\tdog\n", classes(("cat", "puss"), "dog", folders=("b", "a"))),
        # Only the line feed ends a line: this is one name, with a line separator inside.
        (".txt", "a\u2028b\n", classes("a\u2028b")),
        (".json", '["cat", ["dog", "hound"]]', classes("cat", ("dog", "hound"))),
        (
            ".json",
            '{"b": " cat", "a": ["dog", "hound"]}',
            classes("cat", ("dog", "hound"), folders=("b", "a")),
        ),
        (".JSON", '["#1"]', classes("#1")),
        (".yaml", "# pets\n- cat\n- [dog, hound]\n", classes("cat", ("dog", "hound"))),
        (
            ".yml",
            "b: cat\na:\n  - dog\n  - hound\n",
            classes("cat", ("dog", "hound"), folders=("b", "a")),
        ),
        # What YAML would take for false, a number in octal, a date and nothing.
        (
            ".yaml",
            "- no\n- 010\n- 2020-01-01\n- null\n",
            classes("no", "010", "2020-01-01", "null"),
        ),
        (".yaml", "007: bond\n", classes("bond", folders=("007",))),
    ],
)
def test_class_names(write, ending, content, expected):
    assert read_class_names(write(content, ending)) == expected


def test_the_first_name_of_a_class_is_shown():
    assert classes(("cat", "puss"), "dog").names == ("cat", "dog")


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ("", None, "no class names"),
        ("# only\n\n  \n", None, "no class names"),
        ("cat\n# x\ndog\ncat\n", 4, "class name 'cat' is on line 1 already"),
        ("cat\n cat \n", 2, "'cat' is on line 1"),
        ("cat\nCat\n", 2, "class name 'Cat' is on line 1 already, as 'cat'"),
        ("big  cat\nbig cat\n", 2, "is on line 1 already, as 'big  cat'"),
        ("a\tcat\nb\tcat\n", 2, "class name 'cat' is on line 1 already"),
        ("a\tcat\tpuss\nb\tdog\tpuss\n", 2, "class name 'puss' is on line 1 already"),
        ("a\tcat\tcat\n", 1, "class name 'cat' is on line 1 already"),
        ("a\tcat\na\tdog\n", 2, "folder 'a' is on line 1 already"),
        ("a\tcat\ndog\n", 2, "expected folder<TAB>name"),
        ("cat\nb\tdog\n", 2, "expected a name alone"),
        ("a\tcat\nb\t\n", 2, "expected folder<TAB>name"),
        ("a\tcat\t\tpuss\n", 1, "empty text"),
        ("cat\nna\xefve\n".encode("latin-1"), 2, "not UTF-8"),
    ],
)
def test_bad_lines(write, content, line, message):
    path = write(content)
    with pytest.raises(UserError) as error:
        read_class_names(path)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{path}:{line}: " if line else f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "where", "message"),
    [
        ("", ":1: ", "not JSON"),
        ('["cat",\n "dog"', ":2: ", "not JSON"),
        ("[]", ": ", "no class names"),
        ('"cat"', ": ", "expected a list or a mapping"),
        ('["cat", 1]', ": item 2: ", "expected a text in quotes, it is 1"),
        ('["cat", null]', ": item 2: ", "expected a text in quotes, it is None"),
        ('["cat", ["a", ["b"]]]', ": item 2: ", "expected a text in quotes, it is ['b']"),
        ('["cat", {"a": "b"}]', ": item 2: ", "expected a text in quotes"),
        ('["cat", []]', ": item 2: ", "a class without a name"),
        ('["cat", " "]', ": item 2: ", "empty text"),
        ('["cat", "\\ud800"]', ": item 2: ", "half a character"),
        ('["cat", ["dog", "cat"]]', ": item 2: ", "class name 'cat' is in item 1 already"),
        ('{"a": "cat", "b": "cat"}', ": key 'b': ", "'cat' is in key 'a' already"),
        ('{"a": "cat", "a": "dog"}', ": key 'a': ", "folder 'a' is in key 'a' already"),
        ('{"a": {"b": "cat"}}', ": key 'a': ", "expected a text in quotes"),
        ("[" * 10**5, ": ", "recursion"),
        ("[" + "1" * 10**4 + "]", ": ", "digits"),
    ],
)
def test_bad_json(write, content, where, message):
    path = write(content, ".json")
    with pytest.raises(UserError) as error:
        read_class_names(path)
    assert str(error.value).startswith(f"{path}{where}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


BOMB = "a: &a [lol, lol]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize(
    ("content", "where", "message"),
    [
        ("", ": ", "no class names"),
        ("cat", ": ", "expected a list or a mapping"),
        ("- cat\n- [dog\n", ":3: ", "not YAML"),
        ("a: cat\n b: dog\n", ":2: ", "not YAML"),
        ("- cat\n- \x00\n", ": ", "not YAML"),
        ("- cat\n---\n- dog\n", ":2: ", "not YAML"),
        ("- cat\n-\n", ":2: ", "empty text"),
        ("- cat\n- []\n", ":2: ", "a class without a name"),
        ("- cat\n- [[dog]]\n", ":2: ", "expected a text"),
        ("- cat\n- {a: dog}\n", ":2: ", "expected a text"),
        ("? [a, b]\n: cat\n", ":1: ", "expected a text"),
        ("- cat\n- [dog,\n   cat]\n", ":2: ", "class name 'cat' is on line 1 already"),
        ("a: cat\na: dog\n", ":2: ", "folder 'a' is on line 1 already"),
        (BOMB, ":2: ", "alias *a; write its value out"),
        ("[" * 10**5, ":1: ", "expected a text"),
    ],
)
def test_bad_yaml(write, content, where, message):
    path = write(content, ".yaml")
    with pytest.raises(UserError) as error:
        read_class_names(path)
    assert str(error.value).startswith(f"{path}{where}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("e" + "\u0301" * 31, "more than 30 combining marks in a row"),
        ("e" + "\u0f73" * 16, "more than 30 combining marks in a row"),  # two marks each
        ("e" * 10_001, "a text of 10001 letters; 10000 are the most"),
    ],
)
@pytest.mark.parametrize(
    ("ending", "before", "after", "where"),
    [
        (".txt", "cat\n", "\n", ":2: "),
        (".tsv", "a\tcat\n", "\tdog\n", ":2: "),
        (".json", '["cat", "', '"]', ": item 2: "),
        (".yaml", "- cat\n- ", "\n", ":2: "),
    ],
)
def test_names_that_would_take_long(write, ending, before, after, where, name, message):
    path = write(before + name + after, ending)
    with pytest.raises(UserError) as error:
        read_class_names(path)
    assert str(error.value).startswith(f"{path}{where}{message}")


def test_names_of_any_language_are_read(write):
    names = ["e" + "\u0301" * 30, "ภูเขา", "कुत्ता", "con chó", "כֶּלֶב", "བོད་ཡིག", "e" * 10_000]
    assert read_class_names(write("\n".join(names))) == classes(*names)


@pytest.mark.parametrize("read", [read_class_names, read_templates])
def test_files_that_cannot_be_read(read, tmp_path):
    for path in (tmp_path / "nothing.txt", tmp_path):
        with pytest.raises(UserError, match=f"{path}: cannot be read"):
            read(path)
    with pytest.raises(UserError, match=r"cannot be read \(its name has a NUL character"):
        read(f"{tmp_path}/a\0b.txt")


NAMES = st.lists(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"]), max_size=9)
    .map(str.strip)
    .filter(lambda name: name and not name.startswith("#")),
    min_size=1,
    unique_by=lambda name: name.casefold(),
)


@settings(max_examples=50, deadline=None)
@given(names=NAMES)
def test_names_that_are_read_from_any_kind_of_file_are_the_same(names, tmp_path_factory):
    folder = tmp_path_factory.mktemp("names", numbered=True)
    (folder / "names.txt").write_text("\n".join(names), encoding="utf-8")
    (folder / "names.json").write_text(json.dumps(names))
    (folder / "names.yaml").write_text(yaml.safe_dump(names), encoding="utf-8")
    results = []
    for ending in ("txt", "json", "yaml"):
        try:
            results.append(read_class_names(folder / f"names.{ending}"))
        except UserError as error:
            results.append("already" in str(error))
    assert results[0] == results[1] == results[2]
    assert results[0] is True or results[0].names == tuple(names)


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        (".txt", "# prompts\na photo of a {}.\n\n{}\n"),
        (".json", '["a photo of a {}.", "{}"]'),
        (".yaml", "- a photo of a {}.\n- '{}'\n"),
    ],
)
def test_templates(write, ending, content):
    assert read_templates(write(content, ending)) == ("a photo of a {}.", "{}")


def test_a_tab_in_a_template_is_part_of_it(write):
    assert read_templates(write("a\t{}\n")) == ("a\t{}",)


@pytest.mark.parametrize(
    ("ending", "content", "where", "message"),
    [
        (".txt", "", ": ", "no templates"),
        (".txt", "a {}.\na photo\n", ":2: ", "'a photo' has 0 slots"),
        (".txt", "{} and {}\n", ":1: ", "has 2 slots"),
        (".txt", "a {c}.\n", ":1: ", "has 0 slots"),
        (".json", '["a {}.", "b"]', ": item 2: ", "'b' has 0 slots"),
        (".json", '["a {}.", ["b {}.", "c {}."]]', ": item 2: ", "expected one template"),
        (".json", '{"food101": ["a {}."]}', ": key 'food101': ", "expected one template"),
        # A slot that YAML takes for an empty mapping.
        (".yaml", "- a {}.\n- {}\n", ":2: ", "expected a text"),
    ],
)
def test_bad_templates(write, ending, content, where, message):
    path = write(content, ending)
    with pytest.raises(UserError) as error:
        read_templates(path)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{path}{where}")


def test_every_synonym_is_in_every_template_and_descriptions_follow():
    assert class_texts(
        classes(("cat", "puss"), "a {} dog"), ["a {}.", "{}"], (("It purrs.",), ("It barks.", "!"))
    ) == (
        ("a cat.", "cat", "a puss.", "puss", "It purrs."),
        ("a a {} dog.", "a {} dog", "It barks.", "!"),
    )
    assert class_texts(classes("cat"), ["a {}."]) == (("a cat.",),)
    assert class_texts(classes("cat"), [], (("It purrs.",),)) == (("It purrs.",),)
