"""The published data sets with generated images, laid out as the recipes expect them on disk."""

import contextlib
import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


def encoded(seed, *, file_format, channels=3):
    """A little image of noise, as bytes."""
    shape = (20, 24, channels)[: 3 if channels == 3 else 2]
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format)
    return buffer.getvalue()


def write_folders(folder, labels, *, ending, file_format):
    """One file a label, each in the folder that is named like it."""
    for i, label in enumerate(labels):
        path = folder / label / f"{i:05}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(i, file_format=file_format))


def write_gtsrb(folder, train, test):
    """Training folders of PPM files with a table each, test files with a list of class numbers."""
    write_folders(folder / "Training", train, ending="ppm", file_format="PPM")
    head = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\r\n"
    for label in train:
        (folder / "Training" / label / f"GT-{label}.csv").write_text(head)
    images = folder / "Final_Test" / "Images"
    images.mkdir(parents=True)
    rows = []
    for i, label in enumerate(test):
        (images / f"{i:05}.ppm").write_bytes(encoded(i, file_format="PPM"))
        rows.append(f"{i:05}.ppm;24;20;5;5;20;15;{int(label)}\r\n")
    (images / "GT-final_test.csv").write_text(head + "".join(rows), newline="")


# What the data sets' records hold beside image and label.
MORE_FEATURES = {
    "food101": {},
    "sun397/tfds": {"file_name": "x.jpg"},
    "dtd": {"file_name": "x.jpg"},
    "caltech101": {"image/file_name": "x.jpg"},
    "oxford_iiit_pet": {
        "species": 0,
        "file_name": "x.jpg",
        "segmentation_mask": encoded(0, file_format="PNG", channels=1),
        "head_bbox": tfds.features.BBox(0.0, 0.0, 1.0, 1.0),
    },
}


def write_tfds(name, folder, splits):
    """TFDS's own data set, name, version and features, of the labels that `splits` has.

    Its own generator, which would download, is never run.
    """
    published = tfds.builder_cls(name.partition("/")[0])

    def examples(labels):
        for i, label in enumerate(labels):
            more = {
                key: io.BytesIO(value) if isinstance(value, bytes) else value
                for key, value in MORE_FEATURES[name].items()
            }
            image = io.BytesIO(encoded(i, file_format="JPEG"))
            yield f"{i:05}", {"image": image, "label": label, **more}

    with tfds.core.registered.skip_registration():

        class Generated(published):
            name = published.name

            def _split_generators(self, dl_manager):
                return {split: examples(labels) for split, labels in splits.items()}

    builder = Generated(
        config=name.partition("/")[2] or None, data_dir=folder, file_format="array_record"
    )
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        builder.download_and_prepare(download_config=config)


def write(dataset, folder, *, train, test):
    """A data set under `folder`/data, with an image a label."""
    data = folder / "data"
    if dataset == "gtsrb":
        write_gtsrb(data / "GTSRB", train, test)
    elif dataset == "imagenet":
        write_folders(data / "imagenet" / "train", train, ending="JPEG", file_format="JPEG")
        write_folders(data / "imagenet" / "val", test, ending="JPEG", file_format="JPEG")
    elif dataset == "ucf101":
        write_folders(data / "ucf101" / "train", train, ending="jpg", file_format="JPEG")
        write_folders(data / "ucf101" / "val", test, ending="jpg", file_format="JPEG")
    elif dataset == "food101":
        write_tfds("food101", data / "tfds", {"train": train, "validation": test})
    elif dataset == "dtd":
        half = len(train) // 2
        splits = {"train": train[:half], "validation": train[half:], "test": test}
        write_tfds("dtd", data / "tfds", splits)
    else:
        name = {"sun397": "sun397/tfds", "pets": "oxford_iiit_pet"}.get(dataset, dataset)
        write_tfds(name, data / "tfds", {"train": train, "test": test})
