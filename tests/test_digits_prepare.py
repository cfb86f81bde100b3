import collections
import hashlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "tools" / "prepare_digits.py"


def prepare(*arguments):
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits"
    assert prepare(folder, "--seed", 3).returncode == 0
    return folder


def test_two_thirds_train_and_a_third_of_each_class_tests(folder):
    digits = load_digits()
    counts = collections.Counter(digits.target)
    names = (folder / "classes.txt").read_text().split()
    assert len(names) == 10
    for label, name in enumerate(names):
        assert len(list((folder / "test" / name).iterdir())) == round(counts[label] / 3)
    tested = len(list((folder / "test").rglob("*.png")))
    assert len(list((folder / "train").iterdir())) == len(digits.target) - tested
    assert tested == pytest.approx(len(digits.target) / 3, abs=3)


def test_no_image_is_in_both_and_none_is_lost(folder):
    def digest(data):
        return hashlib.sha256(Image.open(io.BytesIO(data)).tobytes()).hexdigest()

    images = {name: digest(data) for name, data in content(folder).items() if "png" in name}
    assert len(images) == 1797
    train = {value for name, value in images.items() if name.startswith("train")}
    test = {value for name, value in images.items() if name.startswith("test")}
    assert not train & test


def test_train_names_and_order_say_nothing_about_the_class(folder):
    sys.path.insert(0, str(ROOT / "tools"))
    import prepare_digits

    digits = load_digits()
    paths = sorted((folder / "train").iterdir())
    assert [path.name for path in paths] == [f"{i:04d}.png" for i in range(len(paths))]
    train, _ = prepare_digits.split(digits.target, seed=3)
    for path, index in list(zip(paths, train, strict=True))[::100]:
        expected = prepare_digits.enlarge(digits.images[index])
        assert Image.open(path).tobytes() == expected.tobytes()
    labels = digits.target[train]
    # Shuffled labels repeat their neighbour's one time in ten; 4 standard deviations around that.
    repeats = np.mean(labels[1:] == labels[:-1])
    assert abs(repeats - 0.1) < 4 * np.sqrt(0.1 * 0.9 / len(labels))
    assert abs(np.corrcoef(np.arange(len(labels)), labels)[0, 1]) < 4 / np.sqrt(len(labels))
    tens = labels[: len(labels) // 10 * 10].reshape(-1, 10)
    assert np.mean([len(set(row)) for row in tens]) < 8


def test_same_seed_same_bytes_other_seed_other_split(folder, tmp_path):
    assert prepare(tmp_path / "same", "--seed", 3).returncode == 0
    assert content(tmp_path / "same") == content(folder)
    assert prepare(tmp_path / "other", "--seed", 4).returncode == 0
    assert content(tmp_path / "other") != content(folder)


def test_refuses_a_folder_with_something_in_it(folder, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    refused = prepare(tmp_path, "--seed", 3)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert str(tmp_path) in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_overwrite_replaces_all(folder, tmp_path):
    target = tmp_path / "digits"
    assert prepare(target, "--seed", 4).returncode == 0
    (target / "stale.txt").write_text("old")
    assert prepare(target, "--seed", 3, "--overwrite").returncode == 0
    assert content(target) == content(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]
