"""The label of a class, by the names that data sets give it."""

from __future__ import annotations

import collections
import functools
import itertools
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from must_jax.class_names.spelling import has_endless_marks, nearest
from must_jax.errors import UserError

Labels = Literal["auto", "required"]
_KEYS = 2**16  # that are kept, as a class has many images, though not of labels that all differ


class Classes:
    """Classes in the order of their labels, found by name.

    Case does not count, and `_`, `-`, `/` and spaces are the same.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        folders: Sequence[str] | None = None,
        synonyms: Sequence[Sequence[str]] | None = None,
    ):
        """Indexes the names.

        Args:
            names: Names of the classes in the order of their labels.
            folders: What the data set calls them, in the same order, where that is something else
                (as the WordNet ids of ImageNet are).
            synonyms: All names of each class, in the same order; None for one name each.

        Raises:
            UserError: There are more folders than names or fewer, or two classes share a folder.
        """
        self.folders = tuple(names if folders is None else folders)
        if len(self.folders) != len(names):
            raise UserError(f"{len(self.folders)} class folders for {len(names)} class names")
        self._by_folder: dict[str, int] = {}
        for label, folder in enumerate(self.folders):
            first = self._by_folder.setdefault(_key(folder), label)
            if first != label:
                raise UserError(
                    f"classes {first} ({self.folders[first]!r}) and {label} ({folder!r}) share a "
                    "folder name"
                )
        # A name that two classes share, as a bird and a machine are both a crane, finds neither.
        keys = [{_key(name) for name in all_names} for all_names in synonyms or zip(names)]
        uses = collections.Counter(itertools.chain.from_iterable(keys))
        self._by_name = {
            key: label for label, own in enumerate(keys) for key in own if uses[key] == 1
        }
        # Classes that are all called by numbers, 1 to 10 or 00000 to 00042: a number is a name.
        self._by_number: dict[int, int] | None = None
        if all(map(_is_integer, self.folders)):
            numbers = {int(folder): label for label, folder in enumerate(self.folders)}
            self._by_number = numbers if len(numbers) == len(self) else None

    def __len__(self) -> int:
        return len(self.folders)

    def find(self, text: str) -> int | None:
        """The label of the class whose folder or else whose name this is."""
        label = self._by_folder.get(_key(text))
        return self._by_name.get(_key(text)) if label is None else label

    def nearest(self, text: str) -> str:
        """The folder of the class that is written most like this text."""
        known = self._by_name | self._by_folder
        return self.folders[known[nearest(_key(text), known)]]

    def of_value(self, value: str | int) -> int | None:
        """The label of the class that a text names; of a number, the label that it is.

        Where all classes are called by numbers, a number is a name.
        """
        if isinstance(value, str):
            return self.find(value)
        if self._by_number is not None:
            return self._by_number.get(value)
        return value if 0 <= value < len(self) else None

    def fault(self, value: str | int) -> str:
        """Why a value is no label, in words."""
        if isinstance(value, str):
            return f"label {value!r} is not a class; nearest: {self.nearest(value)!r}"
        if self._by_number is not None:
            return f"label {value} is none of the classes, which are called by numbers"
        return f"label {value} is not from 0 to {len(self) - 1}"


def index_labels(
    values: Sequence[str | int | None],
    *,
    classes: Classes | None,
    labels: Labels,
    where: Callable[[int], str],
) -> np.ndarray | None:
    """The labels of a whole source.

    If every value is the name of a class, they are names; else integers, even written in letters,
    are labels themselves (or names, as `Classes.of_value` has it).

    Args:
        values: One a record; None where the record has none.
        classes: None where none are known.
        labels: "required": every value must be a label; "auto": nothing is labelled otherwise.
        where: What to call a record in messages.

    Returns:
        int32 (number of values,), or None.

    Raises:
        UserError: Labels are required and a value is none.
    """
    if classes is None:
        return None
    read: dict[str | int, str | int] = {value: value for value in values if value is not None}
    found = {value: classes.of_value(value) for value in read}
    if None in found.values() and all(_is_integer(value) for value in read):
        read = {value: int(value) for value in read}
        found = {value: classes.of_value(read[value]) for value in read}
    indexed = [None if value is None else found[value] for value in values]
    if None not in indexed:
        return np.array(indexed, np.int32)
    if labels == "auto":
        return None
    record = indexed.index(None)
    value = values[record]
    fault = "no label" if value is None else classes.fault(read[value])
    raise UserError(f"{where(record)}: {fault}")


def _is_integer(value: str | int) -> bool:
    return isinstance(value, int) or re.fullmatch(r"[+-]?\d{1,18}", value) is not None


@functools.lru_cache(_KEYS)
def _key(name: str) -> str:
    # Some file systems store accented letters decomposed, whatever was typed.
    if not has_endless_marks(name):
        name = unicodedata.normalize("NFC", name)
    return re.sub(r"[\s_/-]+", " ", name).strip().casefold()
