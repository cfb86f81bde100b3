"""ArrayRecord shards and TFDS splits: the very bytes, the labels, and what is refused."""

import io
import pickle
import re
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import tfds_data
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from must_jax.data.decode import UndecodableImageError
from must_jax.data.sources import Classes, decode_record, open_source
from must_jax.data.sources.example import parse_example
from must_jax.errors import UserError

CLASSES = Classes(["circle", "square", "star"])


def _png(i):
    data = io.BytesIO()
    Image.new("RGB", (5, 4), (i % 256, i // 256, 7)).save(data, "png")
    return data.getvalue()


def _number(image):
    red, green, _ = image.getpixel((0, 0))
    return red + 256 * green


def _refusal(*arguments, **keywords):
    with pytest.raises(UserError) as error:
        open_source(*arguments, **({"classes": CLASSES, "labels": "required"} | keywords))
    assert "\n" not in str(error.value)
    return str(error.value)


def _varint(number):
    number &= 2**64 - 1
    out = b""
    while number >= 128:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def _field(number, data):
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _example(**features):
    """tf.train.Example by the wire format's own rules; integers packed, as TensorFlow writes."""
    entries = b""
    for name, value in features.items():
        if isinstance(value, bytes):
            feature = _field(1, _field(1, value))
        else:
            feature = _field(3, _field(1, b"".join(map(_varint, value))))
        entries += _field(1, _field(1, name.encode()) + _field(2, feature))
    return _field(1, entries)


def _write(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def test_examples_as_tfds_writes_them_are_parsed():
    from tensorflow_datasets.proto import tf_example_generated_pb2

    theirs = tf_example_generated_pb2.Example()
    theirs.features.feature["image"].bytes_list.value.append(b"\xff\xd8\x00")
    theirs.features.feature["numbers"].int64_list.value.extend([3, -1, 2**40])
    theirs.features.feature["half"].float_list.value.append(0.5)
    theirs.features.feature["nothing"].SetInParent()
    assert parse_example(theirs.SerializeToString()) == {
        "image": [b"\xff\xd8\x00"],
        "numbers": [3, -1, 2**40],
        "half": [0.5],
        "nothing": [],
    }
    by_hand = _example(image=b"\xff\xd8\x00", numbers=[3, -1, 2**40])
    assert parse_example(by_hand) == {"image": [b"\xff\xd8\x00"], "numbers": [3, -1, 2**40]}


@pytest.mark.parametrize("data", [b"", b"\n", b"\n\x00", _png(0), b"\xff\xd8\xff\xe0", b"\nabc"])
def test_what_is_no_example(data):
    assert parse_example(data) is None


def test_records_that_are_images(tmp_path):
    for shard in range(3):
        _write(tmp_path / f"x-{shard}.array_record", [_png(10 * shard + i) for i in range(4)])
    source = open_source(tmp_path / "x-*.array_record", classes=CLASSES)
    assert len(source) == 12
    assert source.labels is None
    expected = [10 * shard + i for shard in range(3) for i in range(4)]
    assert [_number(decode_record(source, i)) for i in range(12)] == expected
    assert source.name_of(6) == f"{tmp_path}/x-1.array_record[2]"
    again = pickle.loads(pickle.dumps(source))
    assert _number(decode_record(again, 11)) == 23
    assert "no feature 'label'" in _refusal(tmp_path / "x-*.array_record")


@pytest.mark.parametrize("fields", [("image", "label"), ("image/encoded", "image/class/label")])
def test_examples_with_labels(tmp_path, fields):
    image, label = fields
    path = tmp_path / "x.array_record-00000-of-00001"
    _write(path, [_example(**{image: _png(i), label: [i % 3]}) for i in range(9)])
    keywords = {} if image == "image" else {"image_field": image, "label_field": label}
    source = open_source(path, classes=CLASSES, labels="required", **keywords)
    assert [_number(decode_record(source, i)) for i in range(9)] == list(range(9))
    assert [source.labels[i] for i in range(9)] == [0, 1, 2] * 3
    assert np.asarray(source.labels).tolist() == [0, 1, 2] * 3
    assert np.asarray(source.labels).dtype == np.int32


def test_labels_are_known_without_a_second_read(tmp_path, monkeypatch):
    path = tmp_path / "x.array_record"
    _write(path, [_example(image=_png(i), label=b"star") for i in range(40)])
    source = open_source(path, classes=CLASSES)
    source.read(3)
    monkeypatch.setattr(type(source), "_serialized", None)
    assert source.labels[3] == 2


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ([3], r"x\.array_record\[0\]: label 3 is not from 0 to 2 \(feature 'label'\)"),
        ([-1], r"label -1 is not from 0"),
        (b"stat", r"label 'stat' is not a class; nearest: 'star'"),
        ([], r"no label \(feature 'label'\)"),
        ([1, 2], r"no label \(feature 'label'\)"),
    ],
)
def test_bad_labels_in_examples(tmp_path, label, expected):
    path = tmp_path / "x.array_record"
    _write(path, [_example(image=_png(0), label=label)] * 2)
    assert re.search(expected, _refusal(path))
    assert open_source(path, classes=CLASSES).labels is None
    assert re.search(expected, _refusal(path, labels="auto", label_field="label"))
    # Beyond the few that are tried at the start.
    good = _example(image=_png(0), label=[1])
    _write(path, [good] * 3 + [_example(image=_png(0), label=label)] + [good] * 60)
    source = open_source(path, classes=CLASSES)
    assert source.labels[3] == -1
    source = open_source(path, classes=CLASSES, labels="required")
    with pytest.raises(UserError, match=expected.replace("[0", "[3")):
        source.read(3)


def test_bad_records_are_named(tmp_path):
    path = tmp_path / "x.array_record"
    good = _example(image=_png(0))
    _write(path, [good, _png(1), _example(other=b"x"), _example(image=[1]), good])
    source = open_source(path)
    for record, reason in [
        (1, "not a tf.train.Example"),
        (2, "feature 'image' is not the bytes of one image"),
        (3, "feature 'image' is not the bytes of one image"),
    ]:
        with pytest.raises(UndecodableImageError) as error:
            source.read(record)
        assert str(error.value) == f"{path}[{record}]: {reason}"


def test_a_damaged_first_record_is_an_image_that_cannot_be_read(tmp_path):
    path = tmp_path / "x.array_record"
    _write(path, [_example(image=_png(i)) for i in range(3)])
    whole = bytearray(path.read_bytes())
    whole[whole.index(b"IHDR")] ^= 1
    path.write_bytes(whole)
    source = open_source(path)
    with pytest.raises(UndecodableImageError, match=r"x\.array_record\[0\]"):
        source.read(0)
    assert source.read(1) == _png(1)


def test_array_record_refusals(tmp_path):
    path = tmp_path / "x.array_record"
    assert f"{path} does not exist" in _refusal(path)
    _write(path, [_png(i) for i in range(30)])
    whole = path.read_bytes()
    for data in (b"", b"no records at all", whole[: len(whole) // 2]):
        path.write_bytes(data)
        assert str(path) in _refusal(path)
    _write(path, [])
    assert "no records" in _refusal(path)
    _write(path, [_example(picture=_png(0))])
    assert "no feature has a usual name for images; it has 'picture'" in _refusal(path)
    _write(path, [_png(0)])
    assert f"{tmp_path}/y.array_record: no such file" in _refusal(tmp_path / "{x,y}.array_record")


NAMES = {"names": ["star", "circle", "square"]}
ROWS = [(_png(i), i % 3) for i in range(90)]


@pytest.mark.multiprocess
def test_more_shards_than_files_may_be_open(tmp_path):
    for i in range(60):
        _write(tmp_path / f"x-{i:02}.array_record", [_png(i)])
    code = f"""
import resource
from must_jax.data.sources import open_source
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (40, hard))
source = open_source("{tmp_path}/x-*.array_record")
assert all(source.read(i) for i in range(60))
resource.setrlimit(resource.RLIMIT_NOFILE, (250, 300))
open_source("{tmp_path}/x-*.array_record")
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = process.stderr.strip().splitlines()[-1]
    assert last.startswith("must_jax.errors.UserError: ")
    assert "60 shards stay open, and this system allows 300 open files" in last


@pytest.fixture(scope="module", params=["array_record", "parquet"])
def prepared(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    splits = {"train": ROWS, "test": ROWS[:30], "unlabelled": [(_png(0), -1)] * 3}
    builder = tfds_data.write(folder, splits, names=NAMES, file_format=request.param)
    return folder, builder


@pytest.mark.parametrize("split", ["train", "test", "train[:10%]", "train[50:60]+test"])
def test_a_split_has_the_records_that_tfds_says(prepared, split):
    folder, builder = prepared
    source = open_source(
        split, tfds="shapes", data_dir=str(folder), classes=CLASSES, labels="required"
    )
    # TFDS stores records in an order of its own; here, all of them in that order.
    stored = {name: list(builder.as_data_source(name)) for name in ("train", "test")}
    expected = {
        "train": stored["train"],
        "test": stored["test"],
        "train[:10%]": stored["train"][:9],
        "train[50:60]+test": stored["train"][50:60] + stored["test"],
    }[split]
    assert len(source) == len(expected)
    again = pickle.loads(pickle.dumps(source))
    for record, row in enumerate(expected):
        assert source.read(record) == again.read(record)
        np.testing.assert_array_equal(decode_record(source, record), row["image"])
        # star, circle, square there are 2, 0, 1 here.
        assert source.labels[record] == (row["label"] + 2) % 3
    assert source.name_of(7) == f"shapes {split}[7]"
    assert source.path == f"shapes {split} (TFDS)"


def test_stored_bytes_come_out_as_they_are(prepared):
    source = open_source("train", tfds="shapes:1.0.0", data_dir=str(prepared[0]), classes=CLASSES)
    assert sorted(source.read(i) for i in range(90)) == sorted(image for image, _ in ROWS)


def test_features_by_name(prepared):
    keywords = {"tfds": "shapes", "data_dir": str(prepared[0])}
    source = open_source("test", image_field="mask", **keywords)
    assert source.read(0)[:4] == b"\x89PNG"
    for fields, expected in [
        ({"image_field": "note"}, r"'note' is no image feature; .* \['.*'\]"),
        ({"label_field": "lable"}, "no feature is 'lable'"),
        ({"label_field": "note"}, "label 'note \\d' is not a class"),
    ]:
        assert re.search(expected, _refusal("test", **fields, **keywords))


def test_tfds_classes_must_be_the_same_where_labels_count(prepared):
    keywords = {"tfds": "shapes", "data_dir": str(prepared[0])}
    others = Classes(["circle", "squares", "stair"])
    message = _refusal("test", classes=others, **keywords)
    assert "its class 0, 'star', is none of the class names; nearest: 'stair'" in message
    assert open_source("test", classes=others, **keywords).labels is None
    assert "squares" in _refusal(
        "test",
        classes=Classes(["star", "circle", "squares"]),
        labels="auto",
        label_field="label",
        **keywords,
    )


def test_a_split_without_labels(prepared):
    keywords = {"tfds": "shapes", "data_dir": str(prepared[0])}
    assert open_source("unlabelled", classes=CLASSES, **keywords).labels is None
    assert "shapes unlabelled[0]: label -1 is not from 0 to 2" in _refusal("unlabelled", **keywords)


def test_tfds_classes_without_names_count_by_order(tmp_path):
    rows = [(_png(i), i % 3) for i in range(6)]
    tfds_data.write(tmp_path, {"train": rows}, names={"num_classes": 3}, file_format="array_record")
    keywords = {"tfds": "shapes", "data_dir": str(tmp_path)}
    source = open_source("train", classes=CLASSES, **keywords)
    assert [source.labels[i] for i in range(6)] == [
        _number(decode_record(source, i)) % 3 for i in range(6)
    ]
    assert "3 unnamed classes, and there are 2 here" in _refusal(
        "train", classes=Classes(["a", "b"]), **keywords
    )


def test_tfds_refusals(prepared, tmp_path):
    keywords = {"tfds": "shapes", "data_dir": str(prepared[0])}
    assert "has no split 'tset'; it has train of 90, test of 30, unlabelled of 3" in _refusal(
        "tset", **keywords
    )
    for split in ("train[:x%]", "train[80:100]", "train+tset", ""):
        assert f"has no split {split!r}" in _refusal(split, **keywords)
    for split in ("train[:0]", "train[5:2]"):
        assert "no images in this split" in _refusal(split, **keywords)
    message = _refusal("train", tfds="food101", data_dir=str(tmp_path))
    assert f"'food101' is not prepared in {tmp_path}; nothing is downloaded here" in message
    assert f"tfds build food101 --file_format=array_record --data_dir={tmp_path}" in message
    (tmp_path / "shapes/big/1.0.0").mkdir(parents=True)
    assert "where its folder has big" in _refusal("train", tfds="shapes", data_dir=str(tmp_path))


def test_tfrecord_is_refused_with_the_way_out(prepared, tmp_path):
    _, builder = prepared
    stored = tmp_path / "shapes/1.0.0"
    stored.mkdir(parents=True)
    for name in ("features.json", "label.labels.txt", "dataset_info.json"):
        text = (builder.data_path / name).read_text()
        (stored / name).write_text(
            re.sub('"fileFormat": "[^"]*"', '"fileFormat": "tfrecord"', text)
        )
    message = _refusal("train", tfds="shapes", data_dir=str(tmp_path))
    assert f"{stored}: stored as tfrecord, which can only be read in order" in message
    assert f"--dataset_version_dir={stored} --out_file_format=array_record" in message


def test_a_parquet_file_that_has_lost_records_is_refused(tmp_path):
    builder = tfds_data.write(tmp_path, {"train": ROWS}, names=NAMES, file_format="parquet")
    (file,) = builder.data_path.glob("*.parquet-*")
    pq.write_table(pq.read_table(file).slice(0, 80), file)
    message = _refusal("train[:10%]", tfds="shapes", data_dir=str(tmp_path))
    assert f"{file}: 80 records, where TFDS wrote 90" in message
    file.write_bytes(b"no table")
    message = _refusal("train", tfds="shapes", data_dir=str(tmp_path))
    assert f"{file}: not a Parquet file" in message


def test_a_missing_file_of_a_split_is_named(tmp_path):
    builder = tfds_data.write(
        tmp_path, {"train": ROWS[:3]}, names=NAMES, file_format="array_record"
    )
    (file,) = builder.data_path.glob("*.array_record-*")
    file.unlink()
    assert f"{file}: this file of shapes train (TFDS) is missing" in _refusal(
        "train", tfds="shapes", data_dir=str(tmp_path)
    )
