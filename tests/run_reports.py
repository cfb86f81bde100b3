"""A made-up report on a finished run, any part of which a test may change."""

import dataclasses

import numpy as np

from must_jax.config import default_config, flat_fields
from must_jax.inspection.sheet import Card
from must_jax.predictor import Ranked
from must_jax.quality import ProbePredictions, measure
from must_jax.reporting.predictions import Predictions
from must_jax.reporting.report import Evaluation, FailedImages, Report, Thumbnail

PICTURE = "data:image/png;base64,AAAA"


def ranked(classes, *, confidence=0.8, num_classes=3):
    """Sure of some classes, the next one being second."""
    classes = np.asarray(classes)
    confidences = np.broadcast_to(confidence, classes.shape)
    return Ranked(
        np.stack([classes, (classes + 1) % num_classes], axis=1),
        np.stack([confidences, 1 - confidences], axis=1),
    )


BALANCED = np.arange(90) % 3


def predictions(**changes):
    fields = {
        "records": np.arange(90),
        "failed": np.array([], int),
        "labels": None,
        "zeroshot": ranked(BALANCED),
        "student": ranked(BALANCED),
        "teacher": ranked(BALANCED),
        "num_classes": 3,
    }
    return Predictions(**(fields | changes))


def quality(*, stability=1.0, threshold=0.7, confidence=0.8, consensus=None):
    p = np.where(np.eye(3, dtype=bool)[BALANCED], confidence, (1 - confidence) / 2)
    probe = ProbePredictions.of(p)
    found = measure(
        zeroshot=probe, student=probe, teacher=probe, teacher_before=None, threshold=threshold
    )
    changes = {"stability": stability} | ({} if consensus is None else {"consensus": consensus})
    return dataclasses.replace(found, **changes)


def evaluation(epoch, **changes):
    fields = {
        "step": 10 * epoch,
        "epoch": epoch,
        "accuracy": None,
        "quality": quality(),
        "alarms": {},
    }
    return Evaluation(**(fields | changes))


def thumbnail(**changes):
    fields = {
        "name": "some/image.png",
        "picture": PICTURE,
        "teacher": ((0, 0.8), (1, 0.2)),
        "zeroshot": (2, 0.5),
        "label": None,
    }
    return Thumbnail(**(fields | changes))


def card(**changes):
    fields = {
        "name": "some/image.png",
        "label": None,
        "zero_shot": None,
        "teacher": None,
        "weak": PICTURE,
        "strong": PICTURE,
        "masked": PICTURE,
        "reconstructed": PICTURE,
    }
    return Card(**(fields | changes))


def result(**changes):
    fields = {f"{tree}_top1": None for tree in ("zeroshot", "student", "teacher")}
    fields |= {f"{tree}_mean_per_class": None for tree in ("zeroshot", "student", "teacher")}
    fields |= {
        "eval_metric": "top1",
        "best_by_labels": None,
        "steps": 20,
        "seconds": 12.0,
        "skipped_steps": 0,
        "student_digest": "a" * 64,
        "teacher_digest": "b" * 64,
        "optimizer_digest": "c" * 64,
    }
    return fields | changes


def failed(*named):
    return FailedImages(count=len(named), fraction=len(named) / 900, named=named)


def report(**changes):
    """Of a run without labels, in which all is well."""
    fields = {
        "workdir": "runs/mine",
        "train": "data/mine",
        "test": None,
        "class_names": ("circle", "square", "star"),
        "num_images": 900,
        "result": result(),
        "config": dict(flat_fields(default_config())) | {"batch_size": 90},
        "history": {"quality/consensus": [(1, 0.5), (2, 0.75)], "train/loss": [(1, 3.0), (2, 2.0)]},
        "evaluations": (evaluation(1), evaluation(2)),
        "chosen": 1,
        "trained": predictions(),
        "tested": None,
        "surest": (thumbnail(),),
        "least_sure": (thumbnail(),),
        "mistakes": (),
        "cards": (card(),),
        "failed": failed(),
    }
    return Report(**(fields | changes))


def labelled(**changes):
    """The same with labelled test images, on which the teacher gained."""
    accuracies = {"zeroshot": 0.5, "student": 0.9, "teacher": 0.9}
    fields = {
        "test": "data/test",
        "result": result(
            **{f"{tree}_top1": value for tree, value in accuracies.items()},
            **{f"{tree}_mean_per_class": value for tree, value in accuracies.items()},
            best_by_labels={"step": 10, "epoch": 1, "teacher_top1": 0.95},
        ),
        "evaluations": (evaluation(1, accuracy=0.95), evaluation(2, accuracy=0.9)),
        "tested": predictions(labels=np.where(np.arange(90) < 9, 0, BALANCED)),
        "mistakes": (thumbnail(label=0),),
    }
    return report(**(fields | changes))
