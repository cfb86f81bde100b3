"""What predictions before and after training tell of classes and images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Pair(NamedTuple):
    """Images that one thing takes for the class `first` and another for `second`."""

    first: int
    second: int
    images: int


class Change(NamedTuple):
    """A class before and after training.

    Attributes:
        label: The class.
        images: How many are its own, by labels; None where none tell.
        before: Images taken for it, or right ones among its own.
        after: Likewise.
    """

    label: int
    images: int | None
    before: int
    after: int

    @property
    def gain(self) -> float:
        """By how many images it grew, or by which share of its own."""
        return (self.after - self.before) / (self.images or 1)


def differing_pairs(first: np.ndarray, second: np.ndarray, *, num_classes: int) -> list[Pair]:
    """Pairs of classes in which two labellings (n,) of the same images differ.

    Negative labels are not known, and left out.

    Returns:
        The most frequent first, of equal ones in the order of the classes.
    """
    differs = (first != second) & (first >= 0) & (second >= 0)
    codes = first[differs].astype(np.int64) * num_classes + second[differs]
    pairs, counts = np.unique(codes, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [
        Pair(int(pairs[i]) // num_classes, int(pairs[i]) % num_classes, int(counts[i]))
        for i in order
    ]


def share_changes(before: np.ndarray, after: np.ndarray, *, num_classes: int) -> list[Change]:
    """How many images are taken for each class, from the largest gain to the largest loss."""
    counts = [np.bincount(classes, minlength=num_classes) for classes in (before, after)]
    return _sorted(
        [Change(k, None, int(counts[0][k]), int(counts[1][k])) for k in range(num_classes)]
    )


def accuracy_changes(
    before: np.ndarray, after: np.ndarray, *, labels: np.ndarray, num_classes: int
) -> list[Change]:
    """How many of each class's own images are right; classes without images are left out."""
    known = labels >= 0
    own = np.bincount(labels[known], minlength=num_classes)
    right = [
        np.bincount(labels[known & (classes == labels)], minlength=num_classes)
        for classes in (before, after)
    ]
    return _sorted(
        [
            Change(k, int(own[k]), int(right[0][k]), int(right[1][k]))
            for k in np.flatnonzero(own).tolist()
        ]
    )


def _sorted(changes: list[Change]) -> list[Change]:
    return sorted(changes, key=lambda change: (-change.gain, change.label))


def surest(confidence: np.ndarray, classes: np.ndarray, *, count: int) -> np.ndarray:
    """Places of the images (n,) with the highest confidence, of as many classes as there are.

    First the surest image of each class, the surest class first, and then second ones, and so on.
    """
    order = np.argsort(-confidence, kind="stable")
    seen: dict[int, int] = {}
    turns = np.empty(len(order), int)
    for place in order.tolist():
        label = int(classes[place])
        turns[place] = seen[label] = seen.get(label, -1) + 1
    return np.lexsort((-confidence, turns))[:count]


def least_sure(confidence: np.ndarray, *, count: int) -> np.ndarray:
    """Places of the images (n,) with the lowest confidence, the lowest first."""
    return np.argsort(confidence, kind="stable")[:count]


def ranked_shares(counts: np.ndarray, *, columns: int) -> np.ndarray:
    """Counts (K,) of classes from the most frequent to the least, in up to `columns` columns.

    Returns:
        The mean count of the neighbouring ranks that a column stands for.
    """
    parts = np.array_split(np.sort(counts)[::-1], min(columns, len(counts)))
    return np.array([part.mean() for part in parts])
