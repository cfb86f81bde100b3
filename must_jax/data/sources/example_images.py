"""Images in serialized `tf.train.Example` records, and the labels beside them."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from must_jax.data.decode import UndecodableImageError
from must_jax.data.sources.classes import Classes, Labels
from must_jax.data.sources.example import Values, parse_example
from must_jax.errors import UserError

_PEEKED = 8  # records whose labels are looked at before the start


class RecordLabels(Sequence[int]):
    """Labels that lie within the records: each is known once its record has been read.

    Reading all of them beforehand would mean reading all images.
    """

    def __init__(self, count: int, read: Callable[[int], Any]):
        """`read` reads a record and tells its label to `note`, if it can."""
        self._known = np.full(count, -1, np.int32)
        self._read = read

    def __len__(self) -> int:
        return len(self._known)

    def __getitem__(self, record: Any) -> Any:
        """The label of one record, -1 if it has none that can be read."""
        if self._known[record] < 0:
            with contextlib.suppress(UndecodableImageError):
                self._read(record)
        return self._known[record]

    def note(self, record: int, label: int) -> None:
        """Takes what has been read."""
        self._known[record] = label

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All labels; reads all records."""
        return np.array(list(self), dtype or np.int32)


class ExampleImages(abc.ABC):
    """What TFDS data sets and ArrayRecord shards of `tf.train.Example` have in common.

    Attributes:
        path: What a person calls it.
        labels: Those of all records, read with them; None for an unlabelled source.
        label_feature: What they are read from; empty for an unlabelled source.
    """

    path: str
    labels: RecordLabels | None = None
    label_feature: str = ""

    _image: str  # features
    _classes: Classes
    _strict: bool

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def name_of(self, record: int) -> str:
        """Where the image comes from."""

    @abc.abstractmethod
    def _serialized(self, record: int) -> bytes:
        """The bytes of a record; raises UndecodableImageError."""

    def read(self, record: int) -> bytes:
        """The bytes of the image.

        Raises:
            UndecodableImageError: The record can't be read, or has no image.
            UserError: Labels are required, or their feature named, and this record's is none.
        """
        features = parse_example(self._serialized(record))
        if features is None:
            raise UndecodableImageError(self.name_of(record), "not a tf.train.Example")
        if self.labels is not None:
            label = self._label_in(features, record)
            self.labels.note(record, -1 if label is None else label)
        image = features.get(self._image, [])
        if len(image) != 1 or not isinstance(image[0], bytes):
            reason = f"feature {self._image!r} is not the bytes of one image"
            raise UndecodableImageError(self.name_of(record), reason)
        return image[0]

    def _find_labels(self, label: str | None, *, classes: Classes | None, labels: Labels) -> None:
        """Sets up `labels`; a few records tell whether the feature `label` holds any."""
        if label is None or classes is None:
            return
        self.label_feature, self._classes, self._strict = label, classes, labels == "required"
        self.labels = known = RecordLabels(len(self), self.read)
        tried = np.unique(np.linspace(0, len(self) - 1, _PEEKED).astype(int)).tolist()
        unknown = [record for record in tried if known[record] < 0]
        if unknown and not self._strict:
            self.labels = None

    def _label_of(self, value: str | int) -> int | None:
        """The label that a feature's value stands for."""
        return self._classes.of_value(value)

    def _label_in(self, features: dict[str, Values], record: int) -> int | None:
        values = features.get(self.label_feature, [])
        value = values[0] if len(values) == 1 else None
        text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
        if not isinstance(text, str | int):
            label, fault = None, "no label"
        else:
            label = self._label_of(text)
            fault = "" if label is not None else self._classes.fault(text)
        if fault and self._strict:
            raise UserError(f"{self.name_of(record)}: {fault} (feature {self.label_feature!r})")
        return label
