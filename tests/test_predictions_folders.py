"""A folder a class: links or copies, safe from what classes and images are called."""

import itertools
import os
import time

import pytest
import tiny_run
from hypothesis import given, settings
from hypothesis import strategies as st
from image_kinds import write

from must_jax.data.sources import open_source
from must_jax.errors import UserError
from must_jax.predictions import ClassFolders
from must_jax.predictions.folders import MARK, folder_names

NAMES = ("cat", "../../up", "a/b")


@pytest.fixture
def source(tmp_path):
    """x.png in two folders, and another image."""
    for seed, folder in enumerate(("one", "two")):
        tiny_run.write_images(tmp_path / "images" / folder, count=1, seed=seed)
    tiny_run.write_images(tmp_path / "images" / "three", count=2, seed=3)
    return open_source(tmp_path / "images")


def sort(source, folder, labels, *, names=NAMES, facts=None, has_begun=False):
    folders = ClassFolders(folder, class_names=names, facts=facts or {}, has_begun=has_begun)
    for record, label in enumerate(labels):
        folders.place(label, record=record, source=source)
    return folders


def found_in(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_images_are_linked_and_names_that_collide_get_their_record(source, tmp_path):
    sort(source, tmp_path / "sorted", [0, 0, 2, 1]).finish()
    # In the order of paths: one/000, three/000, three/001, two/000.
    assert found_in(tmp_path / "sorted") == [
        "_.._.._up/000.png",
        "a_b/001.png",
        "cat/000.png",
        "cat/000~1.png",
    ]
    assert os.path.samefile(tmp_path / "sorted/cat/000~1.png", source.name_of(1))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "sorted"]


def test_the_same_again_changes_nothing_and_goes_on_after_a_stop(source, tmp_path):
    sort(source, tmp_path / "sorted", [0, 0])
    sort(source, tmp_path / "sorted", [0, 0, 0, 0], has_begun=True).finish()
    assert found_in(tmp_path / "sorted/cat") == ["000.png", "000~1.png", "000~3.png", "001.png"]
    for record, name in enumerate(["000.png", "000~1.png", "001.png", "000~3.png"]):
        assert os.path.samefile(tmp_path / "sorted/cat" / name, source.name_of(record))


def test_where_there_can_be_no_links_images_are_copied(source, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    for _ in range(2):
        folders = sort(source, tmp_path / "sorted", [0, 0])
    folders.finish()
    assert found_in(tmp_path / "sorted") == ["cat/000.png", "cat/000~1.png"]
    for record, name in enumerate(["000.png", "000~1.png"]):
        copy = tmp_path / "sorted/cat" / name
        assert copy.read_bytes() == source.read(record)
        assert not os.path.samefile(copy, source.name_of(record))


def test_a_link_to_an_image_is_followed(tmp_path):
    tiny_run.write_images(tmp_path / "real", count=1, seed=0)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/link.png").symlink_to(tmp_path / "real/000.png")
    sort(open_source(tmp_path / "images"), tmp_path / "sorted", [0])
    assert not (tmp_path / "sorted/cat/link.png").is_symlink()
    assert os.path.samefile(tmp_path / "sorted/cat/link.png", tmp_path / "real/000.png")


@pytest.mark.parametrize("kind", ["tar", "array_record", "tfds"])
def test_images_in_shards_are_written_as_files(kind, tmp_path):
    tiny_run.write_images(tmp_path / "five", count=5, seed=0)
    images = [(path.read_bytes(), None) for path in sorted((tmp_path / "five").iterdir())]
    fields = write(kind, tmp_path / "shards", images, names=NAMES)
    shards = open_source(**fields)
    sort(shards, tmp_path / "sorted", [0] * 5).finish()
    found = [p for p in (tmp_path / "sorted/cat").iterdir() if p.suffix == ".png"]
    assert sorted(p.read_bytes() for p in found) == sorted(data for data, _ in images)


def test_thousands_of_classes_of_one_name_take_no_long_time():
    began = time.process_time()
    assert folder_names(["/?", "|*"] * 10_000) == [
        "__",
        *(f"__ ({number})" for number in range(2, 20_001)),
    ]
    assert time.process_time() - began < 3


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["a", "A", "a (2)", "A (3)", "a (2) (2)", "ß", "ss", "SS (2)"])))
def test_each_folder_has_the_first_number_that_is_free(names):
    expected = []
    for name in names:
        taken = {other.casefold() for other in expected}
        tries = itertools.chain([name], (f"{name} ({number})" for number in itertools.count(2)))
        expected.append(next(free for free in tries if free.casefold() not in taken))
    assert folder_names(names) == expected


def test_folders_have_names_of_their_own():
    names = ["a/b", "a:b", "A_B", ".", "..", "", ".hidden", "tail. ", "x" * 300, "x" * 299, "é\n"]
    safe = folder_names(names)
    assert safe[:8] == ["a_b", "a_b (2)", "A_B (3)", "_", "_ (2)", "_ (3)", "_.hidden", "tail"]
    assert len({name.casefold() for name in safe}) == len(names)
    assert safe[-1] == "é_"
    for name in safe:
        assert len(name.encode()) < 255
        assert os.path.basename(name) == name
        assert not name.startswith(".")


def test_another_image_of_that_name_is_not_overwritten(source, tmp_path):
    folders = sort(source, tmp_path / "sorted", [])
    (tmp_path / "sorted/cat").mkdir()
    for name in ("000.png", "000~0.png"):
        (tmp_path / "sorted/cat" / name).write_bytes(b"mine")
    with pytest.raises(UserError, match="is there already, and is another image"):
        folders.place(0, record=0, source=source)
    assert (tmp_path / "sorted/cat/000~0.png").read_bytes() == b"mine"


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("is_marked", [True, False])
def test_a_folder_that_has_lost_what_was_sorted_is_refused(source, tmp_path, is_there, is_marked):
    if is_there:
        sort(source, tmp_path / "sorted", [])
    if is_there and not is_marked:
        (tmp_path / "sorted" / MARK).unlink()
    with pytest.raises(UserError, match="has lost the images that were sorted into it before"):
        sort(source, tmp_path / "sorted", [0], has_begun=True)
    assert (tmp_path / "sorted").exists() == is_there


def test_a_class_whose_folder_is_a_link_is_refused(source, tmp_path):
    sort(source, tmp_path / "sorted", [])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "sorted/cat").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"sorted/cat cannot be written \(it is a link\)"):
        sort(source, tmp_path / "sorted", [0])
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_folder_with_anything_else_in_it_is_refused(source, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("")
    with pytest.raises(UserError, match="not empty"):
        sort(source, tmp_path / "full", [0])
    assert found_in(tmp_path / "full") == ["mine.txt"]
    # Begun by other predictions, which may have said something else.
    sort(source, tmp_path / "sorted", [0], facts={"--tree": "student"})
    assert MARK in found_in(tmp_path / "sorted")
    with pytest.raises(UserError, match="not empty"):
        sort(source, tmp_path / "sorted", [0], facts={"--tree": "teacher"})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        sort(source, tmp_path / "file", [0])


@pytest.mark.parametrize("lay", [os.mkfifo, lambda path: path.write_bytes(b"\xff" * 99)])
def test_a_mark_that_is_a_pipe_or_damaged(source, tmp_path, lay):
    sort(source, tmp_path / "sorted", [0])
    (tmp_path / "sorted" / MARK).unlink()
    lay(tmp_path / "sorted" / MARK)
    with pytest.raises(UserError, match=r"not empty|cannot be written"):
        sort(source, tmp_path / "sorted", [0])
