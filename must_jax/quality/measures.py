"""What predictions of unlabelled probe images tell of the classifiers that made them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbePredictions:
    """What one classifier says of N probe images, the same ones each time, K classes.

    Attributes:
      predicted: (N,) int, the most probable class; -1 where an image did not decode.
      confidence: (N,), its probability; 0 where an image did not decode.
      mean_probabilities: (K,), over the images that decoded.
      mean_entropy: of an image's probabilities, in nats, over those images.
    """

    predicted: np.ndarray
    confidence: np.ndarray
    mean_probabilities: np.ndarray
    mean_entropy: float

    @property
    def is_known(self) -> np.ndarray:
        """(N,), whether an image decoded."""
        return self.predicted >= 0

    @classmethod
    def of(
        cls, probabilities: np.ndarray, *, is_known: np.ndarray | bool = True
    ) -> ProbePredictions:
        """From probabilities (N, K), and (N,) which images decoded: at least one."""
        p = np.asarray(probabilities, np.float64)
        known = p[np.broadcast_to(is_known, len(p))]
        return cls(
            predicted=np.where(is_known, p.argmax(axis=1), -1),
            confidence=np.where(is_known, p.max(axis=1), 0),
            mean_probabilities=known.mean(axis=0),
            mean_entropy=float(np.mean(entropy(known))),
        )

    def as_json(self) -> dict[str, Any]:
        """JSON values from which `from_json` makes the same again."""
        return {
            "predicted": self.predicted.tolist(),
            "confidence": self.confidence.tolist(),
            "mean_probabilities": self.mean_probabilities.tolist(),
            "mean_entropy": self.mean_entropy,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ProbePredictions:
        """The inverse of `as_json`."""
        return cls(
            predicted=np.array(values["predicted"], np.int64),
            confidence=np.array(values["confidence"]),
            mean_probabilities=np.array(values["mean_probabilities"]),
            mean_entropy=values["mean_entropy"],
        )


def entropy(p: np.ndarray) -> np.ndarray:
    """Entropy (...,), in nats, of distributions (..., K); NaN where one has a NaN."""
    # 0 log 0 is 0, its limit.
    return -np.sum(p * np.log(np.where(p == 0, 1, p)), axis=-1)


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def agreement(one: ProbePredictions, other: ProbePredictions) -> float:
    """Share of the images that two classifiers take for the same class.

    Of those that decoded for both; NaN where there are none.
    """
    both = one.is_known & other.is_known
    return _mean((one.predicted == other.predicted)[both])


def consensus(one: ProbePredictions, other: ProbePredictions) -> float:
    """Mutual information of the classes of two classifiers, over its most, log K; 1 where K is 1.

    Both are of the same images that decoded.
    1 where both agree, or differ by no more than the classes' names, and use all classes equally
    often; 0 where the class that one says tells nothing of the other's, as after a collapse.
    """
    num_classes = len(one.mean_probabilities)
    if num_classes == 1:
        return 1.0
    first, second = (p.predicted[p.is_known].astype(np.int64) for p in (one, other))

    def of_classes(classes: np.ndarray) -> np.ndarray:
        _, counts = np.unique(classes, return_counts=True)
        return entropy(counts / counts.sum())

    joint = of_classes(first * num_classes + second)
    information = of_classes(first) + of_classes(second) - joint
    return float(information / np.log(num_classes))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierQuality:
    """What the predictions of one classifier tell of it, by the images that decoded.

    Attributes:
      mean_confidence: mean of the largest probabilities.
      confident_fraction: share of the images above the confidence threshold.
      class_entropy: of how often each class is predicted, over its most, log K; 1 where K is 1.
      largest_share: share of the images that the most frequent class takes.
      largest_class: that class.
      classes_never_predicted: how many of the K.
      information: mutual information between image and class, over its most, log K: entropy of the
        mean prediction less the mean entropy of a prediction. 1 where K is 1.
    """

    mean_confidence: float
    confident_fraction: float
    class_entropy: float
    largest_share: float
    largest_class: int
    classes_never_predicted: int
    information: float


# All else are shares.
COUNTS = ("largest_class", "classes_never_predicted", "num_classes", "num_images")


def classifier_quality(probe: ProbePredictions, *, threshold: float) -> ClassifierQuality:
    """The quality of one classifier; confident is strictly above the threshold, as in training."""
    num_classes = len(probe.mean_probabilities)
    known = probe.is_known
    counts = np.bincount(probe.predicted[known], minlength=num_classes)
    most = np.log(num_classes)
    information = entropy(probe.mean_probabilities) - probe.mean_entropy
    return ClassifierQuality(
        mean_confidence=float(np.mean(probe.confidence[known])),
        confident_fraction=float(np.mean(probe.confidence[known] > threshold)),
        class_entropy=float(entropy(counts / counts.sum()) / most) if most else 1.0,
        largest_share=float(counts.max() / counts.sum()),
        largest_class=int(counts.argmax()),
        classes_never_predicted=int(np.sum(counts == 0)),
        information=float(information / most) if most else 1.0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quality:
    """An evaluation without labels.

    Attributes:
      zeroshot, student, teacher: each by itself; zero-shot CLIP is the same in all of a run.
      teacher_student, teacher_zeroshot, student_zeroshot: `agreement` of two.
      consensus: of teacher and student, what `ranking` goes by.
      sure_teacher_zeroshot: agreement on the half of the images that zero-shot CLIP is surest of,
        among those that decoded for both.
      sure_confidence: zero-shot CLIP's mean confidence there.
      stability: agreement of the teacher with that of the evaluation before; with zero-shot CLIP,
        from which it starts, at the first one.
      num_classes: K.
      num_images: that decoded for student and teacher; 0 in notes of earlier versions.
    """

    zeroshot: ClassifierQuality
    student: ClassifierQuality
    teacher: ClassifierQuality
    teacher_student: float
    teacher_zeroshot: float
    student_zeroshot: float
    consensus: float
    sure_teacher_zeroshot: float
    sure_confidence: float
    stability: float
    num_classes: int
    num_images: int = 0

    def metrics(self) -> dict[str, float]:
        """All numbers by the names that files have them under, such as `quality/stability`."""
        values = dataclasses.asdict(self)
        flat = {name: value for name, value in values.items() if not isinstance(value, dict)}
        for tree in ("zeroshot", "student", "teacher"):
            flat |= {f"{tree}_{name}": value for name, value in values[tree].items()}
        skipped = ("num_classes", "num_images", "_largest_class")
        return {f"quality/{n}": float(v) for n, v in flat.items() if not n.endswith(skipped)}

    def as_json(self) -> dict[str, Any]:
        """JSON values from which `from_json` makes the same again."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Quality:
        """The inverse of `as_json`."""
        trees = {
            name: ClassifierQuality(**values[name]) for name in ("zeroshot", "student", "teacher")
        }
        return cls(**{**values, **trees})


def measure(
    *,
    zeroshot: ProbePredictions,
    student: ProbePredictions,
    teacher: ProbePredictions,
    teacher_before: ProbePredictions | None,
    threshold: float,
) -> Quality:
    """The quality at an evaluation; an image may decode at one and not at another.

    Args:
      zeroshot: predictions before training, of the same images.
      student: the student's now.
      teacher: the teacher's now; what decoded for one of them decoded for both.
      teacher_before: the teacher's at the evaluation before; None at the first.
      threshold: confidence above which an image is trained on.
    """
    surest_first = np.argsort(-zeroshot.confidence, kind="stable")
    both = surest_first[(zeroshot.is_known & teacher.is_known)[surest_first]]
    sure = both[: -(-len(both) // 2)]
    return Quality(
        zeroshot=classifier_quality(zeroshot, threshold=threshold),
        student=classifier_quality(student, threshold=threshold),
        teacher=classifier_quality(teacher, threshold=threshold),
        teacher_student=agreement(teacher, student),
        teacher_zeroshot=agreement(teacher, zeroshot),
        student_zeroshot=agreement(student, zeroshot),
        consensus=consensus(teacher, student),
        sure_teacher_zeroshot=_mean(teacher.predicted[sure] == zeroshot.predicted[sure]),
        sure_confidence=_mean(zeroshot.confidence[sure]),
        stability=agreement(teacher, teacher_before or zeroshot),
        num_classes=len(zeroshot.mean_probabilities),
        num_images=int(np.sum(teacher.is_known)),
    )
