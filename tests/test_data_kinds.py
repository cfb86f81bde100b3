"""Whatever images are stored as, loaders and whole runs make the same of them."""

import io
import multiprocessing

import image_kinds
import numpy as np
import pytest
import tfds_data
import tiny_run
from PIL import Image

from must_jax.data.pipeline import eval_loader, train_loader
from must_jax.data.randaugment import RandAugment
from must_jax.data.sources import Classes, open_source
from must_jax.train import train

NAMES = ("circle", "square", "star")
N = 23
SETTINGS = {
    "batch_size": 4,
    "image_size": 16,
    "patch_size": 4,
    "mask_patch_size": 8,
    "mask_ratio": 0.5,
    "crop_area": (0.3, 1.0),
    "flip_probability": 0.5,
    "rand_augment": RandAugment(),
    "fill_color": (122, 116, 104),
    "seed": 7,
    "num_epochs": 2,
    "num_threads": 2,
}


def _images():
    rng = np.random.default_rng(0)
    images = []
    for i in range(N):
        data = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (20, 27, 3), dtype=np.uint8)).save(data, "png")
        # In the order in which a folder a class would have them.
        images.append((data.getvalue(), 3 * i // N))
    return images


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return {
        kind: open_source(
            **image_kinds.write(
                kind, tmp_path_factory.mktemp("kinds") / kind, _images(), names=NAMES
            ),
            classes=Classes(NAMES),
        )
        for kind in image_kinds.KINDS
    }


def _train(source, **changes):
    with train_loader(source, **(SETTINGS | changes)) as loader:
        return list(loader)


def _evaluate(source, **changes):
    settings = {"batch_size": 4, "image_size": 16, "num_threads": 2}
    with eval_loader(source, **(settings | changes)) as loader:
        return list(loader)


def _assert_same(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], name)


@pytest.mark.parametrize("load", [_train, _evaluate])
@pytest.mark.parametrize("kind", image_kinds.ORDERED[1:])
def test_batches_are_those_of_the_folder(sources, kind, load):
    expected = load(sources["folder"])
    assert "label" in expected[0]
    _assert_same(load(sources[kind]), expected)


def test_a_tfds_split_has_the_same_images_and_labels(sources):
    def by_image(source):
        joined = _evaluate(source)
        rows = [row for batch in joined for row in zip(batch["image"], batch["label"], strict=True)]
        return {image.tobytes(): int(label) for image, label in rows}

    assert by_image(sources["tfds"]) == by_image(sources["folder"])


@pytest.mark.parametrize("load", [_train, _evaluate])
@pytest.mark.parametrize("kind", image_kinds.KINDS)
def test_processes_share_the_batches_of_one(sources, kind, load):
    parts = [load(sources[kind], process_index=index, process_count=2) for index in range(2)]
    joined = [
        {name: np.concatenate([part[name] for part in batch]) for name in batch[0]}
        for batch in zip(*parts, strict=True)
    ]
    _assert_same(load(sources[kind]), joined)


@pytest.mark.multiprocess
@pytest.mark.parametrize("kind", ["csv", "tar", "tfds"])
def test_a_worker_process_changes_nothing(sources, kind):
    _assert_same(_train(sources[kind]), _train(sources[kind], num_workers=1))
    assert not multiprocessing.active_children()


@pytest.fixture(scope="module")
def of_folders(inputs, tmp_path_factory):
    config = tiny_run.config(inputs)
    config.epochs = 1
    return train(config, str(tmp_path_factory.mktemp("runs") / "run"))


def _stored_as(kind, inputs, tmp_path):
    """The run of `tiny_run` on the same images, stored as another kind."""
    config = tiny_run.config(inputs)
    config.epochs = 1
    train_images = [(path.read_bytes(), None) for path in sorted((inputs / "train").iterdir())]
    test_images = [
        (path.read_bytes(), tiny_run.CLASSES.index(path.parent.name))
        for path in sorted((inputs / "test").glob("*/*"))
    ]
    for field, images in (("train", train_images), ("test", test_images)):
        fields = image_kinds.write(kind, tmp_path / field, images, names=tiny_run.CLASSES)
        config.dataset[field] = fields.pop("path")
    return config


@pytest.mark.parametrize("kind", image_kinds.ORDERED[1:])
def test_a_run_ends_with_the_same_bits_as_on_folders(kind, inputs, of_folders, tmp_path):
    result = train(_stored_as(kind, inputs, tmp_path), str(tmp_path / "run"))
    for name in ("student_digest", "teacher_digest", "zeroshot_top1", "teacher_top1"):
        assert result[name] == of_folders[name]


def test_a_run_on_tfds(inputs, of_folders, tmp_path):
    splits = {
        "train": [(path.read_bytes(), -1) for path in sorted((inputs / "train").iterdir())],
        "test": [
            (path.read_bytes(), tiny_run.CLASSES.index(path.parent.name))
            for path in sorted((inputs / "test").glob("*/*"))
        ],
    }
    names = {"names": list(tiny_run.CLASSES)}
    tfds_data.write(tmp_path / "tfds", splits, names=names, file_format="array_record")
    config = tiny_run.config(inputs)
    config.epochs = 1
    config.dataset.tfds, config.dataset.data_dir = "shapes", str(tmp_path / "tfds")
    config.dataset.train, config.dataset.test = "train", "test"
    result = train(config, str(tmp_path / "run"))
    # Training has another order here; what is scored before it has none.
    assert result["zeroshot_top1"] == of_folders["zeroshot_top1"]
    assert result["steps"] == of_folders["steps"]


def test_what_does_not_decode_is_named_whatever_holds_it(inputs, tmp_path, capsys):
    images = [(path.read_bytes(), None) for path in sorted((inputs / "train").iterdir())]
    for kind, name in [
        ("csv", "images/017.png"),
        ("tar", "x-001.tar:005"),
        ("array_record", "x-1.array_record[5]"),
    ]:
        config = tiny_run.config(inputs)
        config.epochs = 1
        config.dataset.test = ""
        config.loader.max_failed_fraction = 0.1
        broken = [(b"<html>" if i == 17 else data, label) for i, (data, label) in enumerate(images)]
        fields = image_kinds.write(kind, tmp_path / kind, broken, names=tiny_run.CLASSES)
        config.dataset.train = fields["path"]
        result = train(config, str(tmp_path / f"run_{kind}"))
        assert result["failed_images"] == 1
        told = capsys.readouterr().out
        assert f"skipped {tmp_path}/{kind}/{name}: not an image" in told
