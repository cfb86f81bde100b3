"""ImageFolder: what is found, in which order, with which labels, and what is refused."""

import os
import unicodedata

import numpy as np
import pytest

from must_jax.data.decode import UndecodableImageError
from must_jax.data.sources import Classes, ImageFolder
from must_jax.errors import UserError


def _touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def _relative(source):
    return [os.path.relpath(source.name_of(i), source.path) for i in range(len(source))]


def _message(error):
    message = str(error.value)
    assert "\n" not in message
    return message


def test_finds_images_of_every_suffix_in_any_case_and_nothing_else(tmp_path):
    images = ["a.JPG", "b.jpeg", "c.PnG", "d.webp", "e.bmp", "f.gif", "g.TIF", "h.tiff", "i.ppm"]
    images += ["j.avif", "k.dib", "l.jfif", "m.jp2", "n.pgm"]
    _touch(tmp_path, *images, "notes.txt", ".hidden.jpg", ".cache/x.jpg", "jpg", "k.jpg.md")
    assert _relative(ImageFolder(tmp_path)) == images


def test_order_is_that_of_the_paths_whatever_the_file_system_lists_first(tmp_path, monkeypatch):
    _touch(tmp_path, "b/2.jpg", "b/10.jpg", "a.jpg", "c.jpg", "B/1.jpg", "b-1.jpg", "b/deep/x.jpg")
    expected = ["B/1.jpg", "a.jpg", "b-1.jpg", "b/10.jpg", "b/2.jpg", "b/deep/x.jpg", "c.jpg"]
    assert _relative(ImageFolder(tmp_path)) == expected

    class Reversed:
        def __init__(self, path):
            self.entries = sorted(scandir(path), key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", Reversed)
    assert _relative(ImageFolder(tmp_path)) == expected


def test_records(tmp_path):
    _touch(tmp_path, "cat/1.jpg", "dog/2.jpg")
    source = ImageFolder(tmp_path, classes=Classes(["dog", "cat"]))
    assert len(source) == 2
    assert source.path == str(tmp_path)
    assert [source.name_of(i) for i in range(2)] == [
        str(tmp_path / "cat/1.jpg"),
        str(tmp_path / "dog/2.jpg"),
    ]
    assert source.labels.tolist() == [1, 0]
    assert source.labels.dtype == np.int32
    (tmp_path / "dog/2.jpg").write_bytes(b"two")
    assert source.read(1) == b"two"


def test_a_file_that_is_gone_is_named(tmp_path):
    _touch(tmp_path, "1.jpg")
    source = ImageFolder(tmp_path)
    (tmp_path / "1.jpg").unlink()
    with pytest.raises(UndecodableImageError, match=f"{tmp_path / '1.jpg'}: No such file"):
        source.read(0)


def test_folder_names_match_whatever_case_separators_and_composition(tmp_path):
    cafe = unicodedata.normalize("NFD", "café")
    _touch(tmp_path, "Sea_Lion/1.png", "t-shirt/1.png", f"{cafe}/1.png", "building outdoor/1.png")
    names = ["T shirt", "sea lion", "Café", "building/outdoor"]
    source = ImageFolder(tmp_path, classes=Classes(names), labels="required")
    assert {
        os.path.dirname(path): label
        for path, label in zip(_relative(source), source.labels.tolist(), strict=True)
    } == {"Sea_Lion": 1, "t-shirt": 0, cafe: 2, "building outdoor": 3}


def test_labels_by_explicit_class_folders(tmp_path):
    _touch(tmp_path, "n02/x/1.jpg", "n01/1.jpg")
    source = ImageFolder(
        tmp_path, classes=Classes(["tench", "shark"], folders=["n02", "n01"]), labels="required"
    )
    assert source.labels.tolist() == [1, 0]


def test_labels_by_name_where_folders_have_others(tmp_path):
    _touch(tmp_path, "n1/1.jpg", "gold_fish/2.jpg", "Carassius/3.jpg")
    classes = Classes(
        ["tench", "gold fish"],
        folders=["n1", "n2"],
        synonyms=[["tench"], ["gold fish", "carassius"]],
    )
    source = ImageFolder(tmp_path, classes=classes, labels="required")
    assert source.labels.tolist() == [1, 1, 0]


@pytest.mark.parametrize("paths", [("1.jpg",), ("cat/1.jpg", "2.jpg"), ("cat/1.jpg", "misc/2.jpg")])
def test_auto_is_unlabelled_unless_every_image_has_a_class(tmp_path, paths):
    _touch(tmp_path, *paths)
    assert ImageFolder(tmp_path, classes=Classes(["cat", "dog"])).labels is None


def test_required_labels_name_the_folder_and_the_nearest_class(tmp_path):
    _touch(tmp_path, "cat/1.jpg", "sea_loin/1.jpg")
    with pytest.raises(UserError) as error:
        ImageFolder(tmp_path, classes=Classes(["cat", "dog", "Sea lion"]), labels="required")
    message = _message(error)
    assert "'sea_loin'" in message
    assert "'Sea lion'" in message


def test_required_labels_refuse_an_image_outside_the_class_folders(tmp_path):
    _touch(tmp_path, "cat/1.jpg", "stray.jpg")
    with pytest.raises(UserError) as error:
        ImageFolder(tmp_path, classes=Classes(["cat"]), labels="required")
    assert "stray.jpg" in _message(error)


def test_classes_that_share_a_folder():
    with pytest.raises(UserError, match=r"0 \('t-shirt'\) and 2 \('T shirt'\)"):
        Classes(["t-shirt", "cat", "T shirt"])


def test_as_many_class_folders_as_names():
    with pytest.raises(UserError, match="1 class folders for 2 class names"):
        Classes(["cat", "dog"], folders=["cat"])


def test_missing_empty_and_wrong_paths(tmp_path):
    _touch(tmp_path, "file.jpg")
    (tmp_path / "empty/.git").mkdir(parents=True)
    _touch(tmp_path, "empty/.git/x.jpg", "empty/readme.md")
    for path, expected in [
        (tmp_path / "missing", "does not exist"),
        (tmp_path / "file.jpg", "is not a folder"),
        (tmp_path / "empty", "no images"),
    ]:
        with pytest.raises(UserError, match=expected) as error:
            ImageFolder(path)
        assert str(path) in _message(error)


def test_unreadable_sub_folder(tmp_path, monkeypatch):
    _touch(tmp_path, "1.jpg", "locked/2.jpg")
    scandir = os.scandir

    # Not by permission bits: they don't hold for root.
    def refuse(path):
        if os.path.basename(path) == "locked":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="Permission denied") as error:
        ImageFolder(tmp_path)
    assert str(tmp_path / "locked") in _message(error)


def test_links_are_followed_but_not_in_circles(tmp_path):
    _touch(tmp_path, "real/1.jpg", "data/own.jpg")
    (tmp_path / "data/link").symlink_to(tmp_path / "real")
    (tmp_path / "real/back").symlink_to(tmp_path / "data")
    (tmp_path / "data/self").symlink_to(tmp_path / "data")
    (tmp_path / "data/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    # The broken link stays a record: decoding it reports it.
    assert _relative(ImageFolder(tmp_path / "data")) == ["gone.jpg", "link/1.jpg", "own.jpg"]


def test_a_folder_above_is_not_listed_again_by_another_way(tmp_path):
    """Through a link to what the root lies in, which is no link itself."""
    _touch(tmp_path, "outer/root/1.jpg", "outer/2.jpg", "outer/other/3.jpg")
    (tmp_path / "outer/root/up").symlink_to(tmp_path / "outer")
    found = _relative(ImageFolder(tmp_path / "outer/root"))
    assert found == ["1.jpg", "up/2.jpg", "up/other/3.jpg"]


def test_only_links_are_resolved(tmp_path, monkeypatch):
    """Which takes a time that grows with the depth, for each of all the folders."""
    deep = "/".join("d" * 100)
    _touch(tmp_path, *(f"{deep}/{i}/1.jpg" for i in range(9)))
    (tmp_path / "link").symlink_to(tmp_path / deep / "8")
    resolved = []
    resolve = os.path.realpath

    def note(path):
        resolved.append(path)
        return resolve(path)

    monkeypatch.setattr(os.path, "realpath", note)
    found = _relative(ImageFolder(tmp_path))
    assert found == [*(f"{deep}/{i}/1.jpg" for i in range(9)), "link/1.jpg"]
    assert sorted(resolved) == [str(tmp_path), str(tmp_path / "link")]
