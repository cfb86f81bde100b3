"""What zero-shot predictions tell of a data set and of a confidence threshold."""

from __future__ import annotations

import dataclasses

import numpy as np

THRESHOLDS = tuple(tenths / 10 for tenths in range(1, 10))
# The published recipes' thresholds lie here, and at about three quarters of zero-shot accuracy.
LOWEST, HIGHEST, SHARE_OF_CONFIDENCE = 0.2, 0.7, 0.75


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictions:
    """Zero-shot predictions of n images, K classes.

    Attributes:
        confidence: float (n,), the largest probability.
        predicted: int (n,), its class.
        labels: int (n,), -1 where one is not known; None where none is.
        num_classes: K.
    """

    confidence: np.ndarray
    predicted: np.ndarray
    labels: np.ndarray | None
    num_classes: int

    @property
    def counts(self) -> np.ndarray:
        """How often each class is predicted, (K,)."""
        return np.bincount(self.predicted, minlength=self.num_classes)

    def passing(self, threshold: float) -> float:
        """Share of the images that are confident: strictly above the threshold, as in training."""
        return float(np.mean(self.confidence > threshold))

    def accuracy(self, threshold: float = -1.0) -> float | None:
        """Share of right pseudo-labels above a threshold; None where no label tells it."""
        if self.labels is None:
            return None
        chosen = (self.confidence > threshold) & (self.labels >= 0)
        if not chosen.any():
            return None
        return float(np.mean((self.predicted == self.labels)[chosen]))


def suggested_threshold(mean_confidence: float) -> float:
    """A threshold to start from: three quarters of the mean confidence, in tenths, 0.2 to 0.7."""
    tenths = round(10 * SHARE_OF_CONFIDENCE * mean_confidence)
    return min(HIGHEST, max(LOWEST, tenths / 10))


def never_predicted(counts: np.ndarray) -> np.ndarray:
    """Classes that no image is taken for."""
    return np.flatnonzero(counts == 0)


def missing_by_chance(*, num_images: int, num_classes: int) -> float:
    """How many classes are expected to miss out if n images are spread at random over K classes."""
    return float(num_classes * (1 - 1 / num_classes) ** num_images)


def too_many_missing(counts: np.ndarray) -> bool:
    """Whether more classes are never predicted than chance explains, by three deviations.

    The deviation is a Poisson variable's, which is no less than that of the number of empty bins.
    """
    expected = missing_by_chance(num_images=int(counts.sum()), num_classes=len(counts))
    return len(never_predicted(counts)) > expected + 3 * expected**0.5


def over_predicted(counts: np.ndarray) -> np.ndarray:
    """Classes taken more than twice as often as the average, by more than three deviations.

    Returns:
        Their indices, the most frequent first.
    """
    average = counts.sum() / len(counts)
    far = (counts > 2 * average) & (counts > average + 3 * average**0.5)
    order = np.argsort(-counts, kind="stable")
    return order[far[order]]
