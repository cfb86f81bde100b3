"""Loaders: determinism, epochs, resuming, processes, files that do not decode."""

import multiprocessing
import threading
import time

import numpy as np
import pytest
from PIL import Image

from must_jax.data.pipeline import eval_loader, train_loader
from must_jax.data.randaugment import RandAugment
from must_jax.data.sources import Classes, ImageFolder, decode_record
from must_jax.data.views import evaluation_view
from must_jax.errors import UserError

N = 23
DAMAGED = "not an image, or of an unknown format"
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
    "num_epochs": 3,
    "num_threads": 2,
}


def _write(root, number=N):
    rng = np.random.default_rng(0)
    for index in range(number):
        path = root / ("cat" if index % 2 else "dog") / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 27, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return _write(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def source(folder):
    return ImageFolder(folder, classes=Classes(["cat", "dog"]))


@pytest.fixture
def damaged(tmp_path):
    """Images of which the first ten in order do not decode."""
    source = ImageFolder(_write(tmp_path))
    for index in range(10):
        with open(source.name_of(index), "wb") as file:
            file.write(b"damaged")
    return source


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


def _examples(batches, steps_per_epoch):
    """Every example by (epoch, record)."""
    found = {}
    for step, batch in enumerate(batches):
        for row, record in enumerate(batch["record"]):
            example = {name: values[row] for name, values in batch.items()}
            assert found.setdefault((step // steps_per_epoch, int(record)), example) is example
    return found


def test_shapes_and_types(source):
    batch = _train(source)[0]
    assert batch.pop("reason").tolist() == [""] * 4
    assert {name: (values.shape, values.dtype.name) for name, values in batch.items()} == {
        "image_weak": ((4, 16, 16, 3), "uint8"),
        "image_strong": ((4, 16, 16, 3), "uint8"),
        "patch_mask": ((4, 16), "bool"),
        "record": ((4,), "int32"),
        "failed": ((4,), "int32"),
        "label": ((4,), "int32"),
    }
    np.testing.assert_array_equal(batch["patch_mask"].sum(1), 8)
    np.testing.assert_array_equal(batch["label"], source.labels[batch["record"]])
    np.testing.assert_array_equal(batch["failed"], -1)


def test_no_labels_without_labels(folder):
    assert "label" not in _train(ImageFolder(folder))[0]


def test_epochs_drop_the_remainder_and_differ(source):
    batches = _train(source)
    assert len(batches) == 3 * (N // 4)
    epochs = [
        np.concatenate([batch["record"] for batch in batches[start : start + 5]]).tolist()
        for start in (0, 5, 10)
    ]
    for order in epochs:
        assert len(set(order)) == 20
    assert len({tuple(order) for order in epochs}) == 3
    # What is dropped differs too: no image is left out of a run for good.
    assert len({frozenset(order) for order in epochs}) == 3
    examples = _examples(batches, 5)
    again = [record for record in range(N) if (0, record) in examples and (1, record) in examples]
    for name in ("image_weak", "image_strong", "patch_mask"):
        same = [
            np.array_equal(examples[0, record][name], examples[1, record][name]) for record in again
        ]
        assert np.mean(same) < 0.5, name


def test_examples_of_a_batch_are_drawn_independently(tmp_path):
    for index in range(12):
        Image.new("RGB", (20, 27), "red").save(tmp_path / f"{index}.png")
    (batch,) = _train(ImageFolder(tmp_path), batch_size=12, num_epochs=1)
    assert len({mask.tobytes() for mask in batch["patch_mask"]}) > 2


@pytest.mark.parametrize("changes", [{"num_threads": 0}, {"num_threads": 1}, {"num_threads": 8}])
def test_threads_change_nothing(source, changes):
    _assert_same(_train(source), _train(source, **changes))


@pytest.mark.multiprocess
def test_workers_change_nothing(source):
    _assert_same(_train(source), _train(source, num_workers=2))
    assert not multiprocessing.active_children()


def test_seeds_differ(source):
    first, second = (_train(source, seed=seed) for seed in (0, 1))
    orders = [[batch["record"].tolist() for batch in batches] for batches in (first, second)]
    # Also when shifted by an epoch, as it would be if seed + epoch were all that counted.
    assert orders[0][5:10] != orders[1][:5]
    assert orders[0][:5] != orders[1][:5]
    one, other = _examples(first, 5), _examples(second, 5)
    masks = [
        np.array_equal(one[key]["patch_mask"], other[key]["patch_mask"])
        for key in one
        if key in other
    ]
    assert np.mean(masks) < 0.5


def test_an_example_depends_on_seed_record_and_epoch_alone(source):
    by_four = _examples(_train(source), 5)
    by_six = _examples(_train(source, batch_size=6), 3)
    shared = by_four.keys() & by_six.keys()
    assert len(shared) > 30
    for key in shared:
        for name, values in by_four[key].items():
            np.testing.assert_array_equal(values, by_six[key][name], str(key))


def test_an_example_of_the_first_epoch_does_not_depend_on_the_records_after_it(source, tmp_path):
    shorter = _examples(_train(ImageFolder(_write(tmp_path, number=10)), num_epochs=1), 2)
    longer = {
        (source.name_of(record), name): values
        for (_, record), example in _examples(_train(source, num_epochs=1), 5).items()
        for name, values in example.items()
    }
    # Folder "cat" comes first, so the first five records are the same images in both.
    compared = [record for _, record in shorter if record < 5]
    for record in compared:
        path = source.name_of(record)
        for name in ("image_weak", "image_strong", "patch_mask"):
            if (path, name) in longer:
                np.testing.assert_array_equal(shorter[0, record][name], longer[path, name])
    assert len(compared) > 2


def test_weak_view_and_mask_do_not_depend_on_the_strong_view(source):
    changed = _train(source, rand_augment=RandAugment(num_ops=0), crop_area=(0.9, 1.0))
    for one, other in zip(_train(source), changed, strict=True):
        for name in ("image_weak", "patch_mask", "record"):
            np.testing.assert_array_equal(one[name], other[name])
        assert not np.array_equal(one["image_strong"], other["image_strong"])


@pytest.mark.parametrize("step", [1, 4, 5, 12, 15])
def test_resumed_equals_uninterrupted(source, step):
    _assert_same(_train(source)[step:], _train(source, start_step=step))


@pytest.mark.multiprocess
def test_resumed_with_workers_equals_uninterrupted(source):
    _assert_same(_train(source)[7:], _train(source, start_step=7, num_workers=2, num_threads=1))


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("load", [_train, _evaluate])
def test_processes_share_the_batches_of_one(source, load, count):
    parts = [load(source, process_index=index, process_count=count) for index in range(count)]
    joined = [
        {name: np.concatenate([part[name] for part in batch]) for name in batch[0]}
        for batch in zip(*parts, strict=True)
    ]
    _assert_same(load(source), joined)


def test_damaged_files_are_replaced_and_told(damaged):
    batches = _train(damaged)
    _assert_same(batches, _train(damaged, num_threads=0))
    failed = np.concatenate([batch["failed"] for batch in batches])
    records = np.concatenate([batch["record"] for batch in batches])
    assert set(failed[failed >= 0]) == set(range(10))
    assert records.min() >= 10
    reasons = np.concatenate([batch["reason"] for batch in batches])
    np.testing.assert_array_equal(reasons, np.where(failed >= 0, DAMAGED, ""))
    # A run of damaged files must not all be replaced by the first sound one after them.
    assert len(set(records[failed >= 0])) > 3
    _assert_same(batches[6:], _train(damaged, start_step=6))


def test_sound_records_are_not_changed_by_damaged_ones(damaged, folder):
    sound = _examples(_train(ImageFolder(folder)), 5)
    for step, batch in enumerate(_train(damaged)):
        for row in np.flatnonzero(batch["failed"] < 0):
            expected = sound[step // 5, int(batch["record"][row])]
            np.testing.assert_array_equal(batch["image_strong"][row], expected["image_strong"])


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.multiprocess)])
def test_gives_up_when_nothing_decodes(tmp_path, workers):
    for index in range(8):
        (tmp_path / f"{index}.jpg").write_bytes(b"damaged")
    with pytest.raises(UserError, match="do not decode") as error:
        _train(ImageFolder(tmp_path), num_workers=workers)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_evaluation_has_every_record_once_in_order(source):
    batches = _evaluate(source)
    assert len(batches) == 6
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    np.testing.assert_array_equal(joined["record"], [*range(N), -1])
    np.testing.assert_array_equal(joined["label"], [*source.labels, -1])
    np.testing.assert_array_equal(joined["valid"], [True] * N + [False])
    np.testing.assert_array_equal(joined["failed"], -1)
    for record in range(N):
        expected = evaluation_view(decode_record(source, record), image_size=16)
        np.testing.assert_array_equal(joined["image"][record], expected)


def test_evaluation_of_fewer_records_than_processes(tmp_path):
    source = ImageFolder(_write(tmp_path, number=1))
    parts = [
        _evaluate(source, process_index=index, process_count=4)[0]["valid"] for index in range(4)
    ]
    assert [part.tolist() for part in parts] == [[True], [False], [False], [False]]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.multiprocess)])
def test_evaluation_leaves_out_damaged_files(damaged, workers):
    batches = _evaluate(damaged, num_workers=workers)
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    np.testing.assert_array_equal(joined["failed"], [*range(10), *[-1] * 14])
    np.testing.assert_array_equal(joined["reason"], [*[DAMAGED] * 10, *[""] * 14])
    np.testing.assert_array_equal(joined["valid"], [False] * 10 + [True] * 13 + [False])
    np.testing.assert_array_equal(joined["label"], -1)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"batch_size": 24}, "batch_size 24 is larger than the 23 images"),
        ({"process_count": 3}, "not a positive multiple of the 3 processes"),
        ({"batch_size": 0}, "not a positive multiple"),
        ({"start_step": 16}, "step 16"),
        ({"start_step": -1}, "step -1"),
        ({"mask_patch_size": 6}, "mask_patch_size 6"),
    ],
)
def test_impossible_settings(source, changes, expected):
    with pytest.raises(UserError, match=expected) as error:
        train_loader(source, **(SETTINGS | changes))
    assert "\n" not in str(error.value)


def test_length_counts_from_the_start_step(source):
    with train_loader(source, **SETTINGS, start_step=4) as loader:
        assert len(loader) == 11


def test_closing_midway_stops_the_threads(source):
    with train_loader(source, **SETTINGS) as loader:
        next(loader)
        assert any("grain-prefetch" in thread.name for thread in threading.enumerate())
    deadline = time.monotonic() + 10
    while any("grain-prefetch" in thread.name for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(ValueError, match="closed"):
        next(loader)
