"""The same images in every form in which they may be stored."""

import csv
import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import tfds_data
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_generated_pb2

KINDS = ("folder", "csv", "parquet", "tar", "array_record", "tfds")
ORDERED = KINDS[:-1]  # TFDS stores records in an order of its own


def write(kind, folder, images, *, names):
    """Writes `images`, of (encoded PNG, label or None), and gives the fields of the config.

    Returns:
        What `open_source` takes beside classes and labels; its path is `path`.
    """
    folder.mkdir(parents=True)
    return {
        "folder": _folder,
        "csv": _csv,
        "parquet": _parquet,
        "tar": _tar,
        "array_record": _array_record,
        "tfds": _tfds,
    }[kind](folder, images, names)


def _folder(folder, images, names):
    for i, (data, label) in enumerate(images):
        path = folder / ("" if label is None else names[label]) / f"{i:03}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    return {"path": str(folder)}


def _rows(folder, images, names):
    _folder(folder / "images", [(data, None) for data, _ in images], names)
    for i, (_, label) in enumerate(images):
        yield f"images/{i:03}.png", None if label is None else names[label]


def _csv(folder, images, names):
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        writer.writerows(_rows(folder, images, names))
    return {"path": str(folder / "list.csv")}


def _parquet(folder, images, names):
    paths, labels = zip(*_rows(folder, images, names), strict=True)
    pq.write_table(pa.table({"file": paths, "class": labels}), folder / "list.parquet")
    return {"path": str(folder / "list.parquet")}


def _shards(images, count=3):
    size = -(-len(images) // count)
    return [images[start : start + size] for start in range(0, len(images), size)]


def _tar(folder, images, names):
    for number, shard in enumerate(_shards(images)):
        with tarfile.open(folder / f"x-{number:03}.tar", "w") as tar:
            for i, (data, label) in enumerate(shard):
                files = {"png": data, "json": b"{}"}
                if label is not None:
                    files["cls"] = b"%d" % label
                for ending, content in files.items():
                    info = tarfile.TarInfo(f"{i:03}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return {"path": str(folder / "x-{000..002}.tar")}


def _array_record(folder, images, names):
    for number, shard in enumerate(_shards(images)):
        writer = ArrayRecordWriter(str(folder / f"x-{number}.array_record"), "group_size:1")
        for data, label in shard:
            example = tf_example_generated_pb2.Example()
            example.features.feature["image"].bytes_list.value.append(data)
            if label is not None:
                example.features.feature["label"].int64_list.value.append(label)
            writer.write(example.SerializeToString())
        writer.close()
    return {"path": str(folder / "x-*.array_record")}


def _tfds(folder, images, names):
    rows = [(data, -1 if label is None else label) for data, label in images]
    tfds_data.write(
        folder, {"images": rows}, names={"names": list(names)}, file_format="array_record"
    )
    return {"path": "images", "tfds": "shapes", "data_dir": str(folder)}
