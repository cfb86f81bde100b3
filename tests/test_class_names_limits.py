"""How many names, templates and texts there may be, told before gigabytes are made of them."""

import json

import pytest
import tiny_run
import yaml

from must_jax.class_names import ClassNames, class_texts, files, prompts, read_class_names
from must_jax.errors import UserError
from must_jax.experiment import build


@pytest.fixture
def refusal(tmp_path):
    def refusal(content, ending):
        path = tmp_path / f"names{ending}"
        path.write_text(content)
        with pytest.raises(UserError) as error:
            read_class_names(path)
        assert str(error.value).startswith(f"{path}:")
        return str(error.value).removeprefix(str(path))

    return refusal


@pytest.fixture
def ten_texts(monkeypatch):
    monkeypatch.setattr(files, "MAX_TEXTS", 10)


NAMES = [f'{i}, [{{"\\' for i in range(10)]  # with all that JSON is written with
TOO_MANY = ": more than 10 texts; split the file, or drop some"


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        (".txt", "\n".join(map(str, range(10)))),
        (".txt", "\n".join(f"f{i}\t{i}" for i in range(5))),
        (".json", json.dumps(NAMES)),
        (".json", json.dumps([NAMES])),
        (".json", json.dumps([[name] for name in NAMES])),
        (".json", json.dumps({name: [f"_{name}"] for name in NAMES[:5]})),
    ],
)
def test_as_many_texts_as_there_may_be(ten_texts, tmp_path, ending, content):
    path = tmp_path / f"names{ending}"
    path.write_text(content)
    assert len(read_class_names(path).names) in (1, 5, 10)


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        (".txt", "\n".join(map(str, range(12)))),
        (".txt", "a" + "\tb" * 11),
        (".txt", "# nothing\n" * 11),
        (".json", json.dumps([*NAMES, "x"])),
        (".json", json.dumps([[*NAMES, "x"]])),
        (".json", json.dumps({name: f"_{name}" for name in NAMES[:6]})),
        (".json", json.dumps({"a": NAMES})),
    ],
)
def test_more_texts(ten_texts, refusal, ending, content):
    assert refusal(content, ending) == TOO_MANY


@pytest.mark.parametrize(
    "content",
    [json.dumps(NAMES * 3), "[" + "[]," * 31, "[" + "{}," * 31, "[" + "1," * 31, '"' * 99],
)
def test_json_of_many_more_values_is_not_even_parsed(ten_texts, refusal, monkeypatch, content):
    monkeypatch.setattr(json, "loads", None)
    assert refusal(content, ".json") == TOO_MANY


def test_files_of_megabytes(refusal):
    for content, ending in (("a\n" * 2**21, ".txt"), ("[" + "[]," * 2**22, ".json")):
        assert refusal(content, ending).startswith(": more than 1,048,576 texts")


@pytest.mark.parametrize(
    "content",
    ["- a\n" * 11, "[" + "a," * 11 + "]", "[" + "[]," * 11 + "]", "a:\n" + "- a\n" * 11],
)
def test_yaml_of_many_nodes(refusal, monkeypatch, content):
    monkeypatch.setattr(files, "MAX_YAML_NODES", 10)
    assert "more than 10 texts and lists, which YAML takes long to read" in refusal(content, ".yml")


def test_yaml_of_many_letters(refusal, monkeypatch):
    monkeypatch.setattr(yaml, "compose", None)
    expected = ": larger than 4 MiB, which YAML takes long to read; write it as JSON"
    assert refusal("- a" + "\n" * 2**22, ".yaml") == expected


def test_ten_thousand_classes_in_two_thousand_templates():
    classes = ClassNames(tuple((str(i),) for i in range(10_000)))
    with pytest.raises(UserError, match=r"are 20,000,000 texts of [\d,]+ letters; 8,388,608 texts"):
        class_texts(classes, ["{}"] * 2000)


def test_all_texts_together(monkeypatch):
    """As many, and as long, as they turn out to be."""
    classes = ClassNames((("cat", "puss"), ("dog",)))
    arguments = classes, ["a {}.", "{}"], (("It purrs.",), ("It barks.", "!"))
    texts = [text for of_class in class_texts(*arguments) for text in of_class]
    for limit, found in (("MAX_TEXTS", len(texts)), ("MAX_TEXT_LETTERS", sum(map(len, texts)))):
        with monkeypatch.context() as patched:
            patched.setattr(prompts, limit, found)
            class_texts(*arguments)
            patched.setattr(prompts, limit, found - 1)
            with pytest.raises(UserError, match=r"3 class names in 2 templates, and 3 descr"):
                class_texts(*arguments)


def test_texts_of_long_names_in_long_templates():
    name, template = "a" * files.MAX_LETTERS, "a" * (files.MAX_LETTERS - 2) + "{}"
    with pytest.raises(UserError, match="use fewer templates"):
        class_texts(ClassNames(((name,),) * 1000), [template] * 1000)


def test_a_run_of_too_many_texts_is_not_put_together(tmp_path, monkeypatch):
    """Before its checkpoint is read, which isn't there."""
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "templates.txt").write_text("a {}.\nthe {}.\n")
    config = tiny_run.config(tmp_path)
    monkeypatch.setattr(prompts, "MAX_TEXTS", 3)
    with pytest.raises(UserError, match="2 class names in 2 templates"):
        build(config)
