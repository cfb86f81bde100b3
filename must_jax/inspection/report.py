"""All that an inspection found."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from must_jax.inspection.facts import RunFacts
from must_jax.inspection.images import ImageSurvey
from must_jax.inspection.names import NearNames
from must_jax.inspection.prompts import Prompts
from must_jax.inspection.sheet import Card
from must_jax.inspection.statistics import THRESHOLDS, Predictions, suggested_threshold


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What an inspection found.

    Attributes:
        workdir: Of the run.
        source: What the training images are called.
        class_names: K names, to show.
        facts: The run in numbers.
        survey: The images.
        predictions: Of zero-shot CLIP, on the weak views of the run's first images.
        prompts_used: How many of the prompts made the classifier of the predictions.
        near: Names close to one another.
        prompts: Their lengths.
        cards: The contact sheet.
        seconds: That the inspection took.
    """

    workdir: str
    source: str
    class_names: tuple[str, ...]
    facts: RunFacts
    survey: ImageSurvey
    predictions: Predictions
    prompts_used: int
    near: NearNames
    prompts: Prompts
    cards: tuple[Card, ...]
    seconds: float

    @property
    def mean_confidence(self) -> float:
        """Of the predictions."""
        return float(np.mean(self.predictions.confidence))

    @property
    def suggested_threshold(self) -> float:
        """A confidence threshold to start from."""
        return suggested_threshold(self.mean_confidence)

    @property
    def small_share(self) -> float:
        """Share of the images looked at that the views enlarge."""
        return float(np.mean(self.survey.short_sides < self.facts.image_size))

    def numbers(self) -> dict[str, Any]:
        """All but the pictures, as JSON values."""
        survey, predictions, near = self.survey, self.predictions, self.near
        threshold = self.facts.confidence_threshold
        return {
            "seconds": round(self.seconds, 1),
            "run": dataclasses.asdict(self.facts)
            | {"steps_per_epoch": self.facts.steps_per_epoch, "num_steps": self.facts.num_steps},
            "images": {
                "looked_at": survey.looked_at,
                "short_side": [int(np.quantile(survey.short_sides, q)) for q in (0, 0.5, 1)],
                "smaller_than_image_size": self.small_share,
                "formats": survey.formats,
                "failures": dict(survey.failures),
                "duplicates": [list(group) for group in survey.duplicates],
            },
            "zero_shot": {
                "images": len(predictions.confidence),
                "prompts_used": self.prompts_used,
                "mean_confidence": self.mean_confidence,
                "suggested_threshold": self.suggested_threshold,
                "passing": predictions.passing(threshold),
                "passing_by_threshold": {str(t): predictions.passing(t) for t in THRESHOLDS},
                "predicted": predictions.counts.tolist(),
                "pseudo_label_accuracy": predictions.accuracy(),
                "confident_accuracy": predictions.accuracy(threshold),
            },
            "names": {
                "pairs": [list(pair) for pair in near.pairs],
                "median": near.median,
                "bound": near.bound,
                "flagged": near.num_flagged,
                "same": [[name, list(labels)] for name, labels in near.same],
            },
            "prompts": dataclasses.asdict(self.prompts),
        }
