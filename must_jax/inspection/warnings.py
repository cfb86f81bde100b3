"""What to look into before a run starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from must_jax.inspection.facts import RunFacts
from must_jax.inspection.report import Report
from must_jax.inspection.statistics import never_predicted, over_predicted, too_many_missing
from must_jax.progress import percent

NEARLY_NONE, NEARLY_ALL = 0.05, 0.95  # of the images, above the threshold
MANY_SMALL = 0.25  # of the images
MANY_LEFT_OVER = 0.1  # of the images
_NAMED = 5  # classes in a warning


def warnings(report: Report) -> list[str]:
    """What to look into, one plain text each, the images first and the run last."""
    return [
        *_of_images(report),
        *_of_predictions(report),
        *_of_names(report),
        *_of_run(report.facts),
    ]


def _named(class_names: Sequence[str], labels: Sequence[int] | np.ndarray) -> str:
    more = f" and {len(labels) - _NAMED} more" if len(labels) > _NAMED else ""
    return ", ".join(class_names[label] for label in labels[:_NAMED]) + more


def _of_images(report: Report) -> Iterator[str]:
    survey = report.survey
    if survey.failures:
        name, reason = survey.failures[0]
        yield (
            f"{len(survey.failures)} of the {survey.looked_at} images looked at do not decode, "
            f"such as {name}: {reason}. Other images take their place; more than "
            "loader.max_failed_fraction of all end the run."
        )
    if report.small_share > MANY_SMALL:
        yield (
            f"{percent(report.small_share)} of the images looked at are smaller than image_size "
            f"{report.facts.image_size}: they will be enlarged."
        )
    if survey.duplicates:
        first, second, *_ = survey.duplicates[0]
        yield (
            f"{sum(len(group) - 1 for group in survey.duplicates)} of the {survey.looked_at} "
            f"images looked at are copies of others, such as {second} of {first}."
        )


def _of_predictions(report: Report) -> Iterator[str]:
    predictions, threshold = report.predictions, report.facts.confidence_threshold
    passing, counts = predictions.passing(threshold), predictions.counts
    if passing < NEARLY_NONE:
        hopeless = predictions.passing(report.suggested_threshold) < NEARLY_NONE
        yield (
            f"Only {percent(passing)} of the images pass confidence_threshold {threshold}: there "
            "are few pseudo-labels to learn from."
            + hopeless
            * f" Nor do more pass {report.suggested_threshold}: names, templates or "
            "checkpoint may not fit these images."
        )
    if passing > NEARLY_ALL:
        yield (
            f"{percent(passing)} of the images pass confidence_threshold {threshold}: wrong "
            "pseudo-labels are kept along with the right ones."
        )
    if too_many_missing(counts):
        missing = never_predicted(counts)
        yield (
            f"{len(missing)} of {len(counts)} classes are predicted for no image, more than "
            f"chance explains: {_named(report.class_names, missing)}."
        )
    over = over_predicted(counts)
    if len(over):
        yield (
            f"{len(over)} of {len(counts)} classes take more than twice their equal share of the "
            f"images: {_named(report.class_names, over)}."
        )


def _of_names(report: Report) -> Iterator[str]:
    near, prompts, names = report.near, report.prompts, report.class_names
    if near.same:
        name, labels = near.same[0]
        yield (
            f"{len(near.same)} names stand for more than one class, such as {name!r} for "
            f"{_named(names, labels)}."
        )
    if near.num_flagged:
        first, second, cosine = near.pairs[0]
        yield (
            f"{near.num_flagged} pairs of classes are close to the same for the text tower, first "
            f"{names[first]} and {names[second]} (cosine {cosine:.3f})."
        )
    if prompts.num_cut:
        text, length = prompts.cut[0]
        yield (
            f"{prompts.num_cut} of {prompts.count} prompts are longer than the "
            f"{prompts.context_length} tokens that the text tower reads, and are cut, such as "
            f"{text!r} of {length} tokens."
        )


def _of_run(facts: RunFacts) -> Iterator[str]:
    if facts.left_over > MANY_LEFT_OVER * facts.images:
        yield (
            f"batch_size {facts.batch_size} leaves {facts.left_over} of the {facts.images} images "
            "out of every epoch, others each time."
        )
    if facts.batch_size < facts.num_classes:
        yield (
            f"batch_size {facts.batch_size} is smaller than the {facts.num_classes} classes, over "
            "which the fairness term spreads the predictions of a batch."
        )
    if facts.ema_horizon > facts.num_steps:
        yield (
            f"ema_decay {facts.ema_decay} averages over {facts.ema_horizon:,.0f} steps, more than "
            f"the run's {facts.num_steps:,}: {percent(facts.start_weight)} of the final teacher "
            "will be what it started from."
        )
    if facts.checkpoint_step is not None and facts.checkpoint_step >= facts.num_steps:
        yield (
            f"The workdir is at step {facts.checkpoint_step:,} of {facts.num_steps:,}: there is "
            "nothing left to train."
        )
