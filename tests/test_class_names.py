import pathlib

import pytest

import must_jax
from must_jax.class_names import ClassNames, read_class_names, read_templates
from must_jax.errors import UserError

ASSETS = pathlib.Path(must_jax.__file__).parent / "assets" / "imagenet"


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "names.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("cat\ndog\n", ClassNames(("cat", "dog"))),
        ("cat", ClassNames(("cat",))),
        ("\ufeff# a comment\r\n\r\n  big cat \r\nétoile\r\n", ClassNames(("big cat", "étoile"))),
        ("b\tcat\na\t dog \n", ClassNames(("cat", "dog"), ("b", "a"))),
        # Only the line feed ends a line: this is one name, with a line separator inside.
        ("a\u2028b\n", ClassNames(("a\u2028b",))),
    ],
)
def test_class_names(write, content, expected):
    assert read_class_names(write(content)) == expected


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ("", None, "no class names"),
        ("# only\n\n  \n", None, "no class names"),
        ("cat\n# x\ndog\ncat\n", 4, "class name 'cat' is on line 1 already"),
        ("cat\n cat \n", 2, "'cat' is on line 1"),
        ("a\tcat\nb\tcat\n", 2, "class name 'cat' is on line 1 already"),
        ("a\tcat\na\tdog\n", 2, "folder 'a' is on line 1 already"),
        ("a\tcat\ndog\n", 2, "expected folder<TAB>name"),
        ("cat\nb\tdog\n", 2, "expected a name alone"),
        ("a\tcat\nb\t\n", 2, "expected folder<TAB>name"),
        ("a\tcat\tpuss\n", 1, "more than one tab"),
        ("cat\nna\xefve\n".encode("latin-1"), 2, "not UTF-8"),
    ],
)
def test_bad_class_names(write, content, line, message):
    path = write(content)
    with pytest.raises(UserError) as error:
        read_class_names(path)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{path}:{line}: " if line else f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("read", [read_class_names, read_templates])
def test_files_that_cannot_be_read(read, tmp_path):
    for path in (tmp_path / "nothing.txt", tmp_path):
        with pytest.raises(UserError, match=f"{path}: cannot be read"):
            read(path)


def test_templates(write):
    path = write("# prompts\na photo of a {}.\n\n{}\n")
    assert read_templates(path) == ("a photo of a {}.", "{}")


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ("", None, "no templates"),
        ("a {}.\na photo\n", 2, "'a photo' has 0 slots"),
        ("{} and {}\n", 1, "has 2 slots"),
        ("a {c}.\n", 1, "has 0 slots"),
    ],
)
def test_bad_templates(write, content, line, message):
    path = write(content)
    with pytest.raises(UserError) as error:
        read_templates(path)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{path}:{line}: " if line else f"{path}: ")


def test_imagenet_is_complete_and_in_label_order():
    classes = read_class_names(ASSETS / "classes.tsv")
    assert len(classes.names) == len(set(classes.folders)) == 1000
    # ImageNet's labels number the sorted WordNet ids.
    assert list(classes.folders) == sorted(classes.folders)
    known = {
        0: ("n01440764", "tench"),
        207: ("n02099601", "Golden Retriever"),
        744: ("n04008634", "projectile"),
        999: ("n15075141", "toilet paper"),
    }
    for label, pair in known.items():
        assert (classes.folders[label], classes.names[label]) == pair
    templates = read_templates(ASSETS / "templates.txt")
    assert len(set(templates)) == 80
    assert templates[0] == "a bad photo of a {}."
