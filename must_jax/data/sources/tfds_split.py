"""Splits of TFDS data sets that are prepared on disk."""

from __future__ import annotations

import glob
import json
import os
import re
from typing import Any

from must_jax.data import files
from must_jax.data.decode import UndecodableImageError
from must_jax.data.local_copies import local_copy, place_of
from must_jax.data.sources.array_record_shard import ArrayRecordParts
from must_jax.data.sources.classes import Classes, Labels
from must_jax.data.sources.example_images import ExampleImages
from must_jax.data.sources.fields import IMAGE_FIELDS, LABEL_FIELDS, find_field
from must_jax.data.sources.open_files import allow_open_files
from must_jax.data.sources.tfds_parquet import ParquetRows, check_rows
from must_jax.errors import UserError, first_line, reason
from must_jax.local_files import read_text

MAX_CLASSES = 10_000_000
_FEATURES = "features.json"
_OF_TFDS = "tensorflow_datasets."
_SHARD = re.compile(r"-\d+-of-\d+$")


class TfdsSplit(ExampleImages):
    """The images of a split, in the order in which TFDS stores them.

    Images come out as the bytes that were stored. Nothing is ever downloaded.
    """

    def __init__(
        self,
        name: str,
        split: str,
        *,
        data_dir: str = "",
        image_field: str = "",
        label_field: str = "",
        classes: Classes | None = None,
        labels: Labels = "auto",
    ):
        """Reads what TFDS notes about the data set, and a few records.

        Args:
            name: The data set, such as `food101`, `name/config` or `name/config:1.0.0`.
            split: One of its splits, or a part or a sum: `train`, `train[:90%]`,
                `train+validation`.
            data_dir: Where data sets lie; empty for TFDS's own place, `~/tensorflow_datasets`.
                Of files behind a URL, copies are made.
            image_field: Feature with the image; empty for the image feature.
            label_field: Feature with the label; empty for the class label. Where it is named,
                labels are never passed over.
            classes: What labels are looked up in; None for an unlabelled source.
            labels: "required": every record has a label, of the same classes; "auto": unlabelled
                if it has other classes or one of a few records has no label.

        Raises:
            UserError: The data set is not prepared, or stored so that it can only be read in
                order, or has no such split or feature; labels are required, or named, and the
                classes are not the same.
        """
        self.path = f"{name} {split} (TFDS)"
        self._name, self._split = name, split
        builder = _builder(name, data_dir)
        try:
            stored = builder.info.splits[split].file_instructions
        except Exception as error:
            splits = builder.info.splits
            if isinstance(error, ValueError | KeyError) and split not in splits:
                known = ", ".join(f"{one} of {of.num_examples}" for one, of in splits.items())
                raise UserError(f"{name} (TFDS) has no split {split!r}; it has {known}") from error
            raise UserError(f"{self.path}: its notes are damaged ({first_line(error)})") from error
        if min((one.take for one in stored), default=0) <= 0:
            raise UserError(f"{self.path}: no images in this split")
        parts = [(os.fspath(one.filename), one.skip, one.take) for one in stored]
        for file, _, _ in parts:
            if files.is_remote(data_dir):
                inside = os.path.relpath(file, place_of(data_dir))
                local_copy(f"{files.absolute(data_dir)}/{inside}")
            if not os.path.exists(file):
                raise UserError(f"{file}: this file of {self.path} is missing")
        if builder.info.file_format.value == "parquet":
            check_rows({os.fspath(one.filename): one.examples_in_shard for one in stored})
            self._records: Any = ParquetRows(parts)
        else:
            allow_open_files(len(stored), path=self.path)
            self._records = ArrayRecordParts(parts)
        features = builder.info.features
        self._image = _image_feature(self.path, features, image_field)
        label = _label_feature(self.path, features, label_field)
        if label is None and labels == "required":
            raise UserError(
                f"{self.path}: labels are needed, and no feature is "
                f"{label_field or 'a class label'!r}; say which with config.dataset.label_field"
            )
        strict: Labels = "required" if label_field else labels
        self._labels_of_data_set: list[int] | None = None
        if label is not None and classes is not None:
            try:
                self._labels_of_data_set = _match(features[label], classes, self.path)
            except UserError:
                if strict == "required":
                    raise
                label = None
        self._find_labels(label, classes=classes, labels=strict)

    def __len__(self) -> int:
        return len(self._records)

    def name_of(self, record: int) -> str:
        """The data set, the split, and the number of the record in it, counted from 0."""
        return f"{self._name} {self._split}[{record}]"

    def _serialized(self, record: int) -> bytes:
        try:
            return self._records[record]
        # Neither library has kinds of errors of its own.
        except Exception as error:
            raise UndecodableImageError(self.name_of(record), str(error)) from error

    def _label_of(self, value: str | int) -> int | None:
        if self._labels_of_data_set is None or isinstance(value, str):
            return super()._label_of(value)
        # A split without labels has -1 throughout.
        known = 0 <= value < len(self._labels_of_data_set)
        return self._labels_of_data_set[value] if known else None


def _builder(name: str, data_dir: str) -> Any:
    """What TFDS knows of a prepared data set, set to a file format with random access."""
    from tensorflow_datasets.core import constants, file_adapters, read_only_builder, registered

    folder = files.absolute(data_dir or constants.DATA_DIR)
    if files.is_remote(folder):
        folder = _copied_notes(name, folder)
    _check_features(os.path.join(folder, re.split("[/:]", name)[0]))
    try:
        builder = read_only_builder.builder_from_files(name, data_dir=folder)
    except registered.DatasetNotFoundError as error:
        known = os.path.join(folder, name.partition(":")[0])
        inside = ", ".join(sorted(os.listdir(known))) if os.path.isdir(known) else ""
        raise UserError(
            f"TFDS data set {name!r} is not prepared in {folder}"
            + (f", where its folder has {inside}" if inside else "")
            + "; nothing is downloaded here: prepare it as docs/data.md says, with: "
            f"tfds build {name} --file_format=array_record --data_dir={folder}"
        ) from error
    except Exception as error:
        raise UserError(f"TFDS data set {name!r} in {folder} does not load: {error}") from error
    formats = builder.info.available_file_formats()
    for wanted in (file_adapters.FileFormat.ARRAY_RECORD, file_adapters.FileFormat.PARQUET):
        if wanted in formats:
            builder.info.set_file_format(wanted, override=True, override_if_initialized=True)
            return builder
    raise UserError(
        f"{builder.data_dir}: stored as {', '.join(sorted(f.value for f in formats))}, which can "
        "only be read in order; convert it as docs/data.md says, with: "
        f"tfds convert_format --dataset_version_dir={builder.data_dir} "
        "--out_file_format=array_record"
    )


def _check_features(folder: str) -> None:
    """Refuses a data set whose features are others than TFDS's: it would import their modules."""
    for file in sorted(
        glob.glob(os.path.join(glob.escape(folder), "**", _FEATURES), recursive=True)
    ):
        try:
            pending = [json.loads(read_text(file))]
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{file}: cannot be read ({error})") from error
        while pending:
            value = pending.pop()
            if isinstance(value, dict):
                for kind in (value.get("pythonClassName"), value.get("type")):
                    if isinstance(kind, str) and "." in kind and not kind.startswith(_OF_TFDS):
                        raise UserError(
                            f"{file}: feature {kind} is none of TFDS's, whose code alone is run"
                        )
            if isinstance(value, dict | list):
                pending += value.values() if isinstance(value, dict) else value


def _copied_notes(name: str, data_dir: str) -> str:
    """A local folder with all files of a remote data set that are no shards."""
    folder = f"{data_dir}/{re.split('[/:]', name)[0]}"
    try:
        found = files.remote_files(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({reason(error)})") from error
    if not found:
        raise UserError(f"TFDS data set {name!r} is not prepared in {data_dir}")
    for file in found:
        if not _SHARD.search(file):
            local_copy(f"{folder}/{file}")
    return place_of(data_dir)


def _image_feature(path: str, features: Any, named: str) -> str:
    from tensorflow_datasets.core.features import Image

    images = [key for key, feature in features.items() if isinstance(feature, Image)]
    found = find_field(images, named=named, usual=IMAGE_FIELDS)
    if found is None and len(images) == 1 and not named:
        return images[0]
    if found is None:
        raise UserError(
            f"{path}: "
            + (f"{named!r} is no image feature" if named else "which is the image?")
            + f"; its image features are {images}; say which with config.dataset.image_field"
        )
    return found


def _label_feature(path: str, features: Any, named: str) -> str | None:
    from tensorflow_datasets.core.features import ClassLabel

    if named:
        return find_field(list(features), named=named, usual=())
    labels = [key for key, feature in features.items() if isinstance(feature, ClassLabel)]
    found = find_field(labels, named="", usual=LABEL_FIELDS)
    return labels[0] if found is None and len(labels) == 1 else found


def _match(feature: Any, classes: Classes, path: str) -> list[int] | None:
    """The label here of each label there; None where a feature has no classes of its own."""
    from tensorflow_datasets.core.features import ClassLabel

    if not isinstance(feature, ClassLabel):
        return None
    count = feature.num_classes or 0
    if not count:
        return None
    if count > MAX_CLASSES:
        raise UserError(f"{path}: more than {MAX_CLASSES:,} classes")
    names = list(feature.names)
    if len(names) != count:
        raise UserError(f"{path}: damaged, it has {count} classes and {len(names)} names")
    found = [classes.find(name) for name in names]
    known = [label for label in found if label is not None]
    if len(known) == count:
        return known
    if names == [str(label) for label in range(count)]:
        # No names of its own: what counts is the order.
        if count == len(classes):
            return list(range(count))
        raise UserError(f"{path} has {count} unnamed classes, and there are {len(classes)} here")
    first = found.index(None)
    raise UserError(
        f"{path}: its class {first}, {names[first]!r}, is none of the class names; "
        f"nearest: {classes.nearest(names[first])!r}"
    )
