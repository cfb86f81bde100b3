"""Alarms, and the choice of a checkpoint, from a run's evaluations without labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from must_jax.quality.measures import ClassifierQuality, Quality

# Of the classes in use, beside one. On the digits, runs that ended above zero-shot CLIP kept 0.88
# of them and more, teacher and student, also where classes were unequal; those that lost accuracy
# for want of balance fell to 0.77 and below, and what diverged to 0.
COLLAPSED = 0.8
# Of the images, in one class: there is next to nothing left to tell apart, whatever was before.
NEARLY_ALL_IN_ONE = 0.98
# Self-training averages over confident images: of a batch of 1024, ten are too few to learn from.
TOO_FEW_CONFIDENT = 0.01
FELL_TO = 0.1  # of the largest confident share before
# Zero-shot CLIP errs more often than this in all but trivial tasks, and each error passes.
NEARLY_ALL_CONFIDENT = 0.99
CONTRADICTS = 0.5  # of what zero-shot CLIP is surest of
# Of the images that decode at best. Fewer images have a larger consensus for chance alone: its bias
# is near (K - 1)^2 / 2 N nats (Miller, 1955).
NEARLY_ALL_DECODE = 0.9


@dataclasses.dataclass(frozen=True)
class Alarm:
    """A run that goes wrong.

    Attributes:
      name: of what happened, the function in this module that rings it.
      told: what is seen, in words.
      advice: what to change.
    """

    name: str
    told: str
    advice: str


def diverged(history: Sequence[Quality]) -> Alarm | None:
    """Predictions are no numbers."""
    now = history[-1]
    if np.isfinite(now.student.mean_confidence) and np.isfinite(now.teacher.mean_confidence):
        return None
    return Alarm(
        "diverged",
        "the predictions are no numbers any more",
        "lower config.learning_rate; with config.dtype bfloat16, try float32",
    )


def collapse(
    history: Sequence[Quality], *, class_names: Sequence[str] | None = None
) -> Alarm | None:
    """Some classes take over from others.

    Classes in use are counted as exp(entropy) (Hill, 1973, "Diversity and evenness"), which is K
    for equal shares and 1 for a single class. The one that is always left does not count.
    A class that takes nearly all is told also where zero-shot CLIP took as many for it.
    """
    now = history[-1]

    def others(one: ClassifierQuality) -> float:
        return now.num_classes**one.class_entropy - 1

    before = others(now.zeroshot)
    for name, one in (("teacher", now.teacher), ("student", now.student)):
        nearly_all = one.largest_share > NEARLY_ALL_IN_ONE and now.num_classes > 1
        if others(one) < COLLAPSED * before or nearly_all:
            largest = one.largest_class
            called = class_names[largest] if class_names else f"class {largest}"
            return Alarm(
                "collapse",
                f"the {name} takes {one.largest_share:.1%} of the images for {called}, and uses "
                f"{others(one) + 1:.1f} classes as it were, of zero-shot CLIP's {before + 1:.1f}",
                "raise config.fair_weight or config.confidence_threshold, or lower "
                "config.learning_rate; if your classes are that unequal, all is well",
            )
    return None


def unsure(history: Sequence[Quality]) -> Alarm | None:
    """Hardly any image is confident enough to learn from."""
    now = history[-1].teacher.confident_fraction
    before = max(one.teacher.confident_fraction for one in history)
    before = max(before, history[-1].zeroshot.confident_fraction)
    if now >= TOO_FEW_CONFIDENT and now >= FELL_TO * before:
        return None
    return Alarm(
        "unsure",
        f"{now:.1%} of the images are confident, and were {before:.1%}: nothing is learned from "
        "pseudo-labels",
        "lower config.confidence_threshold; if they were confident before, raise "
        "config.self_train_weight or lower config.fair_weight",
    )


def unselective(history: Sequence[Quality]) -> Alarm | None:
    """The threshold lets everything pass, from zero-shot CLIP on: its errors are taught."""
    now = history[-1]
    shares = (now.zeroshot.confident_fraction, now.teacher.confident_fraction)
    if min(shares) <= NEARLY_ALL_CONFIDENT:
        return None
    return Alarm(
        "unselective",
        f"{shares[1]:.1%} of the images are confident, and {shares[0]:.1%} were before training: "
        "zero-shot CLIP's errors are taught like all else",
        "raise config.confidence_threshold to three quarters of zero-shot CLIP's mean confidence; "
        "if nearly all pass at every threshold, see the checkpoint's logit scale",
    )


def departed(history: Sequence[Quality]) -> Alarm | None:
    """The teacher contradicts zero-shot CLIP where that is surest.

    Of images that zero-shot CLIP is right on in a share c of cases, a teacher that agrees on less
    than 2 c - 1 of them is right less often than zero-shot CLIP: it is wrong wherever it disagrees
    and zero-shot CLIP is right. Its confidence stands for c; where that is too high, contradicting
    it on most of them is asked for as well.
    """
    now = history[-1]
    if not now.sure_teacher_zeroshot < min(CONTRADICTS, 2 * now.sure_confidence - 1):
        return None  # nor where none of those images decoded both times
    return Alarm(
        "departed",
        f"the teacher agrees with zero-shot CLIP on {now.sure_teacher_zeroshot:.1%} of the half of "
        "the images that zero-shot CLIP is surest of",
        "lower config.learning_rate, or bring config.ema_decay closer to 1",
    )


def alarms(history: Sequence[Quality], *, class_names: Sequence[str] | None = None) -> list[Alarm]:
    """What is wrong at the last of a run's evaluations, which are in their order, if anything is.

    Predictions that are no numbers are told alone, for nothing else then has a meaning. A class is
    told by its name in `class_names`, (K,), or where nobody knows them by its number.
    """
    if not history:
        return []
    if no_numbers := diverged(history):
        return [no_numbers]
    rung = (
        collapse(history, class_names=class_names),
        unsure(history),
        unselective(history),
        departed(history),
    )
    return [alarm for alarm in rung if alarm]


def ranking(history: Sequence[Quality]) -> list[int]:
    """Indices of the evaluations, by whose teacher to take, judged without labels; best first.

    Those without an alarm come before all others, and those without numbers last, then those of far
    fewer images than others; then the larger `consensus` counts, and of equal ones the later.
    """
    most = max((one.num_images for one in history), default=0)

    def rank(index: int) -> tuple[bool, bool, bool, float, int]:
        one, found = history[index], alarms(history[: index + 1])
        is_number = not any(alarm.name == "diverged" for alarm in found)
        # Earlier versions noted no number.
        is_whole = not one.num_images or one.num_images >= NEARLY_ALL_DECODE * most
        return not found, is_number, is_whole, one.consensus, index

    return sorted(range(len(history)), key=rank, reverse=True)
