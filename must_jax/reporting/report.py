"""All that the page about a finished run shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from must_jax.errors import UserError
from must_jax.inspection.sheet import Card
from must_jax.quality import Quality
from must_jax.reporting.history import Points
from must_jax.reporting.predictions import Predictions


class NoReportError(UserError):
    """There is no page, as all processes know; or the first knows that has nothing left to do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """One image, and what is said of it.

    Attributes:
        name: As the source calls it.
        picture: As the model sees it, a `data:` address; empty where it can't be had.
        teacher: Classes and probabilities, the most probable first.
        zeroshot: Class and probability before training.
        label: The true class, or None.
    """

    name: str
    picture: str
    teacher: Sequence[tuple[int, float]]
    zeroshot: tuple[int, float]
    label: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """An evaluation of the run.

    Attributes:
        step, epoch: When.
        accuracy: The teacher's, by `eval_metric`; None without labels.
        quality: What predictions tell without labels.
        alarms: What was wrong, by name, in words.
    """

    step: int
    epoch: int
    accuracy: float | None
    quality: Quality
    alarms: Mapping[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FailedImages:
    """Training images that did not decode.

    Attributes:
        count: How many.
        fraction: Of all.
        named: Name and reason of some of them.
    """

    count: int
    fraction: float
    named: Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What is known of a finished run.

    Attributes:
        workdir: Of the run.
        train, test: What its images are called; `test` is None without labelled ones.
        class_names: K names, to show.
        num_images: Training images.
        result: The content of result.json.
        config: The fields, by their dotted names.
        history: Each metric of metrics.jsonl over epochs.
        evaluations: All of them, in their order.
        chosen: The first by `quality.ranking`; None without any.
        trained: Predictions of training images, spread evenly.
        tested: Predictions of the labelled test images, or None.
        surest, least_sure: Training images, by the teacher's confidence.
        mistakes: Test images on which the teacher is surest and wrong.
        cards: Views, masks and reconstructions.
        failed: Images that did not decode.
    """

    workdir: str
    train: str
    test: str | None
    class_names: Sequence[str]
    num_images: int
    result: Mapping[str, Any]
    config: Mapping[str, Any]
    history: Mapping[str, Points]
    evaluations: Sequence[Evaluation]
    chosen: int | None
    trained: Predictions
    tested: Predictions | None
    surest: Sequence[Thumbnail]
    least_sure: Sequence[Thumbnail]
    mistakes: Sequence[Thumbnail]
    cards: Sequence[Card]
    failed: FailedImages

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return self.num_images // self.config["batch_size"]

    @property
    def last(self) -> Evaluation | None:
        """The last evaluation."""
        return self.evaluations[-1] if self.evaluations else None
