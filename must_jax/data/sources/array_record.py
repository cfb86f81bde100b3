"""ArrayRecord shards."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from must_jax.data import files
from must_jax.data.decode import UndecodableImageError
from must_jax.data.local_copies import local_copy
from must_jax.data.sources.array_record_shard import ArrayRecordShard
from must_jax.data.sources.classes import Classes, Labels
from must_jax.data.sources.example import parse_example
from must_jax.data.sources.example_images import ExampleImages
from must_jax.data.sources.fields import IMAGE_FIELDS, LABEL_FIELDS, find_field, no_image_field
from must_jax.data.sources.open_files import allow_open_files
from must_jax.errors import UserError

_OPENING_THREADS = 16
_FEW = 100  # records, to see what they hold


class ArrayRecordShards(ExampleImages):
    """The images in ArrayRecord shards, in the order of the shards and of the records in them.

    A record is an encoded image as it is, or a serialized `tf.train.Example` with one in a feature
    and perhaps a label in another.
    """

    def __init__(
        self,
        path: str,
        shards: Sequence[str],
        *,
        image_field: str = "",
        label_field: str = "",
        classes: Classes | None = None,
        labels: Labels = "auto",
    ):
        """Reads the ends of the shards, and a few records.

        Args:
            path: What a person calls the shards.
            shards: ArrayRecord files, paths or URLs; of the latter, copies are made.
            image_field: Feature with the image; empty for a usual name (`IMAGE_FIELDS`).
            label_field: Feature with the label, the name of a class or an integer; empty for a
                usual one (`LABEL_FIELDS`). Where it is named, labels are never passed over.
            classes: What labels are looked up in; None for an unlabelled source.
            labels: "required": every record has a label; "auto": unlabelled if one of a few has
                none.

        Raises:
            UserError: A shard is missing, damaged or cut short, there are more than may be open,
                or no feature is an image; labels are required, or named, and one is missing or
                no class.
        """
        self.path = path
        self._shards = tuple(shards)

        def open_shard(shard: str) -> ArrayRecordShard:
            records = ArrayRecordShard(local_copy(shard))
            try:
                len(records)
                return records
            # The library has no kinds of errors of its own.
            except Exception as error:
                what = "can't be read" if files.exists(shard) else "no such file"
                raise UserError(f"{shard}: {what} ({error})") from error

        allow_open_files(len(self._shards), path=path)
        with ThreadPoolExecutor(_OPENING_THREADS) as pool:
            self._records = list(pool.map(open_shard, self._shards))
        self._ends = list(itertools.accumulate(map(len, self._records)))
        if not len(self):
            raise UserError(f"{path}: no records in {len(self._shards)} ArrayRecord files")
        features = parse_example(self._first())
        self._image = ""
        if features is not None:
            blobs = [
                name for name, values in features.items() if list(map(type, values)) == [bytes]
            ]
            image = find_field(blobs, named=image_field, usual=("image", "encoded", *IMAGE_FIELDS))
            if image is None:
                raise no_image_field(path, sorted(features), named=image_field, what="feature")
            self._image = image
        label = find_field(list(features or {}), named=label_field, usual=LABEL_FIELDS)
        if label is None and labels == "required":
            raise UserError(
                f"{path}: labels are needed, and the records have no feature "
                f"{label_field or 'label'!r}; say which with config.dataset.label_field"
            )
        strict: Labels = "required" if label_field else labels
        self._find_labels(label, classes=classes, labels=strict)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def name_of(self, record: int) -> str:
        """The shard, and the number of the record in it, counted from 0."""
        shard, position = self._locate(record)
        return f"{self._shards[shard]}[{position}]"

    def read(self, record: int) -> bytes:
        """The bytes of the image.

        Raises:
            UndecodableImageError: The record can't be read, or has no image.
            UserError: Labels are required, or their feature named, and this record's is none.
        """
        return super().read(record) if self._image else self._serialized(record)

    def _first(self) -> bytes:
        """The first record that can be read, of a few."""
        for record in range(min(len(self), _FEW)):
            try:
                return self._serialized(record)
            except UndecodableImageError as error:
                last = error
        raise UserError(f"{self.path}: none of its first records can be read; {last}") from last

    def _locate(self, record: int) -> tuple[int, int]:
        shard = bisect.bisect_right(self._ends, record)
        return shard, record - (self._ends[shard - 1] if shard else 0)

    def _serialized(self, record: int) -> bytes:
        shard, position = self._locate(record)
        try:
            return self._records[shard][position]
        except Exception as error:
            raise UndecodableImageError(self.name_of(record), str(error)) from error
