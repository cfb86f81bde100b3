"""Accuracies, and how they are named in files and told."""

import dataclasses
from collections.abc import Mapping

import numpy as np

IN_WORDS = {"top1": "accuracy", "mean_per_class": "mean per-class accuracy"}
NOTED = {"top1": "", "mean_per_class": " (mean per class)"}  # after accuracies in a sentence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """Accuracies of one classifier, as fractions.

    Attributes:
      top1: share of the images whose largest logit is their label's.
      mean_per_class: the same share within each class, averaged over the classes that have images.
    """

    top1: float
    mean_per_class: float


Scores = Mapping[str, Score | None]


def score_of(right: np.ndarray, total: np.ndarray) -> Score:
    """The accuracies of a classifier that is right on `right` of `total` images of each class.

    Args:
      right: (K,) counts.
      total: (K,) counts, not all of them 0.
    """
    has_images = total > 0
    return Score(
        top1=float(right.sum() / total.sum()),
        mean_per_class=float(np.mean(right[has_images] / total[has_images])),
    )


def fields(scores: Scores) -> dict[str, float | None]:
    """Every accuracy by the name that files have it under, such as `student_top1`."""
    return {
        f"{name}_{metric}": None if score is None else getattr(score, metric)
        for metric in IN_WORDS
        for name, score in scores.items()
    }
