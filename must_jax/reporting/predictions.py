"""What zero-shot CLIP, student and teacher say of every image of a source."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from must_jax.data.sources import Source
from must_jax.predictor import Predictor, Ranked
from must_jax.state import Params

TOP_K = 3  # classes of an image that the page can tell


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictions:
    """Of the n images of a source that decode.

    Attributes:
        records: int (n,), indices in the source, ascending.
        failed: int (m,), the other ones.
        labels: int (n,), -1 where one is not known; None where none is.
        zeroshot: Zero-shot CLIP's classes and probabilities, (n, k) each, the most probable first.
        student: The student's.
        teacher: The teacher's.
        num_classes: K.
    """

    records: np.ndarray
    failed: np.ndarray
    labels: np.ndarray | None
    zeroshot: Ranked
    student: Ranked
    teacher: Ranked
    num_classes: int

    def accuracy(self, ranked: Ranked) -> float | None:
        """Share of the labelled images whose first class is their label's; None without any."""
        if self.labels is None:
            return None
        known = self.labels >= 0
        return float(np.mean((ranked.classes[:, 0] == self.labels)[known])) if known.any() else None

    def counts(self, ranked: Ranked) -> np.ndarray:
        """How often each class is the first, (K,)."""
        return np.bincount(ranked.classes[:, 0], minlength=self.num_classes)

    def confident(self, ranked: Ranked, *, threshold: float) -> float:
        """Share of the images strictly above a threshold, as in training."""
        return float(np.mean(ranked.probabilities[:, 0] > threshold))


def predict_all(
    predictor: Predictor,
    source: Source,
    *,
    num_classes: int,
    between_batches: Callable[[], None],
    zeroshot: Params,
    student: Params,
    teacher: Params,
) -> Predictions:
    """Predicts every image of a source. All processes must call it, and all get the result."""
    trees = {"zeroshot": zeroshot, "student": student, "teacher": teacher}
    labels: list[np.ndarray] = []
    found: dict[str, list[Ranked]] = {name: [] for name in trees}
    for batch in predictor.batches(source, between_batches=between_batches, **trees):
        labels.append(batch.labels())
        for name, (classes, probabilities) in batch.ranked.items():
            found[name].append(Ranked(classes[:, :TOP_K], probabilities[:, :TOP_K]))
    joined = {
        name: Ranked(*(np.concatenate(parts)[: len(source)] for parts in zip(*ranked, strict=True)))
        for name, ranked in found.items()
    }
    known = joined["teacher"].is_known
    of_images = np.concatenate(labels)[: len(source)][known]
    return Predictions(
        records=np.flatnonzero(known),
        failed=np.flatnonzero(~known),
        labels=of_images if (of_images >= 0).any() else None,
        **{name: Ranked(*(part[known] for part in ranked)) for name, ranked in joined.items()},
        num_classes=num_classes,
    )
