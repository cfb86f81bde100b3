"""What a finished run tells its owner to do, with labels or without."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from must_jax.inspection.statistics import never_predicted, over_predicted, too_many_missing
from must_jax.progress import percent
from must_jax.reporting.report import Report
from must_jax.scores import IN_WORDS

# Of the images, over the last quarter of the evaluations. On the digits, runs of 60 epochs end with
# 0.3 %, and runs of 24, which reach five points less, with 1.2 to 1.6 %.
STILL_CHANGING = 0.005
FEW_CONFIDENT = 0.5  # of the images
LAGS = 0.01  # accuracy of the teacher behind the student
_NAMED = 6  # classes


def advice(report: Report) -> list[str]:
    """What went wrong or could go better, and what to change, one plain text each.

    Alarms come first; nothing is told of a run that no rule has anything to say about.
    """
    return [*_alarms(report), *_by_labels(report), *_of_training(report), *_of_images(report)]


def _alarms(report: Report) -> Iterator[str]:
    rings = dict(report.last.alarms) if report.last else {}
    for name, sentence in rings.items():
        yield f"Alarm, {name}: {sentence}."
    past: dict[str, list[int]] = {}
    for evaluation in report.evaluations:
        for name in evaluation.alarms:
            past.setdefault(name, []).append(evaluation.epoch)
    for name, epochs in past.items():
        if name not in rings:
            yield (
                f"The alarm {name} rang at {_epochs(epochs)}, and no more at the last evaluation: "
                "look whether the curves recovered there."
            )


def _epochs(epochs: list[int]) -> str:
    if len(epochs) == 1:
        return f"epoch {epochs[0]}"
    return f"{len(epochs)} evaluations from epoch {epochs[0]} to {epochs[-1]}"


def _by_labels(report: Report) -> Iterator[str]:
    metric = report.result["eval_metric"]
    zeroshot, student, teacher = (
        report.result.get(f"{tree}_{metric}") for tree in ("zeroshot", "student", "teacher")
    )
    if zeroshot is None or student is None or teacher is None:
        return
    if teacher < zeroshot:
        yield (
            f"By the test labels, training lost {IN_WORDS[metric]}: {percent(zeroshot)} before, "
            f"{percent(teacher)} after. Look at the pairs below; try a higher "
            "config.confidence_threshold or a lower config.learning_rate."
        )
    if student - teacher > LAGS:
        yield (
            f"By the test labels, the teacher ({percent(teacher)}) lags behind the student "
            f"({percent(student)}): lower config.ema_decay, train for more epochs, or take the "
            "student (--tree=student)."
        )


def _of_training(report: Report) -> Iterator[str]:
    last, config = report.last, report.config
    if last is None or "diverged" in last.alarms:
        return
    chosen = report.evaluations[report.chosen] if report.chosen is not None else last
    if chosen.step != last.step:
        kept = f"checkpoints/{chosen.step}" if config["keep_chosen"] else "not kept: keep_chosen"
        yield (
            f"Without labels, epoch {chosen.epoch} is chosen rather than the last one: consensus "
            f"{chosen.quality.consensus:.3f} against {last.quality.consensus:.3f} ({kept})."
        )
    quarter = max(1, len(report.evaluations) // 4)
    changed = sum(1 - each.quality.stability for each in report.evaluations[-quarter:])
    if len(report.evaluations) > 1 and changed > STILL_CHANGING:
        yield (
            f"In the last quarter of the run the teacher still changed its mind on "
            f"{percent(changed)} of the images: more config.epochs may go further."
        )
    confident = last.quality.teacher.confident_fraction
    if confident < FEW_CONFIDENT and "unsure" not in last.alarms:
        middle = float(np.median(report.trained.teacher.probabilities[:, 0]))
        lower = math.floor(20 * middle) / 20
        yield (
            f"At the end only {percent(confident)} of the images are confident enough to learn "
            f"from at config.confidence_threshold {config['confidence_threshold']:g}; at "
            f"{lower:g} more than half would be."
        )
    if report.result["skipped_steps"]:
        yield (
            f"{report.result['skipped_steps']:,} steps were skipped, for they were not finite: "
            "lower config.learning_rate if there are many."
        )


def _of_images(report: Report) -> Iterator[str]:
    counts = report.trained.counts(report.trained.teacher)
    if too_many_missing(counts):
        missing = never_predicted(counts)
        yield (
            f"The teacher takes none of {counts.sum():,} training images for {len(missing)} of "
            f"{len(counts)} classes: {_named(report, missing)}. If you have such images, reword "
            "the names, or add synonyms and descriptions."
        )
    over = over_predicted(counts)
    if len(over):
        yield (
            f"{len(over)} of {len(counts)} classes take more than twice an equal share of the "
            f"images: {_named(report, over)}. If your images are like that, lower "
            "config.fair_weight; if not, reword names that fit other classes' images too."
        )
    if report.failed.count:
        yield (
            f"Of the training images, {report.failed.count:,} ({percent(report.failed.fraction)}) "
            "did not decode, and others took their place: mend or remove those named below."
        )


def _named(report: Report, labels: np.ndarray) -> str:
    more = f" and {len(labels) - _NAMED} more" if len(labels) > _NAMED else ""
    return ", ".join(report.class_names[label] for label in labels[:_NAMED]) + more
