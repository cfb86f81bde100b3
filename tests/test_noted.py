"""Notes of a run's checkpoint that somebody forged: one line of what is wrong where."""

import copy
import dataclasses

import pytest

from must_jax.errors import UserError
from must_jax.noted import wrong_in_result, wrong_in_step
from must_jax.results import ENDED
from must_jax.run_notes import RunNotes
from must_jax.scores import NOTED

QUALITY = {
    "mean_confidence": 0.5,
    "confident_fraction": 0.5,
    "class_entropy": 0.5,
    "largest_share": 0.5,
    "largest_class": 1,
    "classes_never_predicted": 0,
    "information": float("nan"),
}
PROBE = {
    "predicted": [0, 1, -1],
    "confidence": [0.5, 0.6, 0.0],
    "mean_probabilities": [0.5, 0.5],
    "mean_entropy": 0.3,
}
NOTES = {
    "facts": {"number of images": 3},
    "config": {"epochs": 2},
    "seconds": 1.5,
    "test": None,
    "zero_shot": {"zeroshot_top1": None, "zeroshot_mean_per_class": None},
    "best_by_labels": None,
    "evaluated_step": 4,
    "probe": {"zeroshot": PROBE, "teacher": dict(PROBE)},
    "evaluations": [
        {
            "step": 4,
            "epoch": 1,
            "teacher_top1": None,
            "quality": {
                **dict.fromkeys(("zeroshot", "student", "teacher"), QUALITY),
                **dict.fromkeys(
                    ("teacher_student", "teacher_zeroshot", "student_zeroshot", "consensus"), 0.5
                ),
                **dict.fromkeys(("sure_teacher_zeroshot", "sure_confidence", "stability"), 0.5),
                "num_classes": 2,
                "num_images": 2,
            },
            "alarms": {"unsure": "told"},
        }
    ],
    "failed_records": [2],
    "pending": [{"line": '{"step": 3}'}, {"loss": float("nan"), "is_finite": 0.0}],
    "skipped_steps": 1,
    "skipped_in_row": 1,
}


def test_notes_of_a_run_come_back():
    notes = RunNotes.from_json(copy.deepcopy(NOTES), path="run")
    # By what they print, for a NaN is not itself.
    assert repr(notes.json()) == repr(NOTES)
    assert NOTES.keys() == {field.name for field in dataclasses.fields(RunNotes)}
    assert RunNotes.from_json({"facts": {}}, path="run") == RunNotes(facts={})
    # A path of bytes that are no text, and what an earlier version did not note.
    old = copy.deepcopy(NOTES) | {"config": {"dataset.train": "/caf\udce9"}}
    assert old["evaluations"][0]["quality"].pop("num_images")
    assert RunNotes.from_json(old, path="run").config == {"dataset.train": "/caf\udce9"}


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        ("", [], "Input should be an object"),
        ("facts", None, "facts: Input should be an object"),
        ("seconds", float("nan"), "seconds: Input should be a finite number"),
        ("seconds", "1", "seconds: Input should be a valid number"),
        ("test", 3, "test: "),
        ("zero_shot.zeroshot_top1", 2.0, r"zero_shot.zeroshot_top1: .* less than or equal to 1"),
        ("evaluated_step", True, "evaluated_step: Input should be a valid integer"),
        ("evaluated_step", 10**400, "evaluated_step: "),
        ("probe.teacher.predicted", [0, 1], "probe.teacher: lists of other lengths"),
        ("probe.zeroshot.predicted", [0, 2, -1], "probe.zeroshot.predicted: other classes"),
        ("probe.teacher.predicted", [-1, -1, -1], "probe.teacher.predicted: other classes"),
        ("probe.zeroshot.mean_probabilities", [], "probe.zeroshot.mean_probabilities: "),
        ("probe.zeroshot.confidence.1", "x", "probe.zeroshot.confidence.1: "),
        ("probe.zeroshot.confidence.1", 1.5, "probe.zeroshot: probabilities out of their range"),
        ("probe.teacher.mean_probabilities", [-1e-9, 1.0], "probe.teacher: probabilities out of"),
        ("evaluations.0.step", -1, "evaluations.0.step: "),
        ("evaluations.0.teacher_top1", "high", "evaluations.0.teacher_top1: "),
        ("evaluations.0.alarms", ["unsure"], "evaluations.0.alarms: "),
        ("evaluations.0.quality.teacher", {}, "evaluations.0.quality.teacher.mean_confidence: "),
        ("evaluations.0.quality.stability", 1e300, "evaluations: measures out of their range"),
        ("evaluations.0.quality.num_classes", 2**40, "evaluations: measures out of their range"),
        (
            "evaluations.0.quality.teacher.class_entropy",
            10**9,
            "evaluations: measures out of their range",
        ),
        ("failed_records.0", -1, "failed_records.0: "),
        ("pending.1.loss", [], "pending.1"),
        ("skipped_in_row", 0.5, "skipped_in_row: "),
        ("evaluations.0.quality.x", 0.5, "evaluations: measures that this version does not know"),
        ("evaluations.0.quality.student.x", "y", "evaluations: measures that this version"),
        ("evaluations.0.quality.num_classes", 0, "evaluations: measures out of their range"),
        ("evaluations.0.quality.consensus", -1, "evaluations: measures out of their range"),
        ("probe.zeroshot.confidence.1", 10**400, "probe: an integer that no float holds"),
        ("pending.1.loss", -(10**400), "pending: an integer that no float holds"),
        ("probe.x", 5, "probe.x: Extra inputs are not permitted"),
        ("pending.0.line", 3.0, "pending: a line that is no text"),
    ],
)
def test_forged_notes_are_refused(place, value, told):
    notes = {"": copy.deepcopy(NOTES)}
    *containers, key = ["", *place.split(".")] if place else [""]
    inside = notes
    for name in containers:
        inside = inside[int(name) if isinstance(inside, list) else name]
    inside[int(key) if isinstance(inside, list) else key] = value
    with pytest.raises(UserError, match=rf"^run: .* not what a run leaves \(.*{told}"):
        RunNotes.from_json(notes[""], path="run")


@pytest.mark.parametrize("name", ["step", "steps_per_epoch", "images", "batch"])
def test_forged_notes_of_a_dump_are_refused(name):
    notes = {"step": 7, "steps_per_epoch": 4, "images": ["a"], "batch": {"x": ["uint8", [1]]}}
    assert wrong_in_step(notes | {"metrics": {}, "images": ["/caf\udce9"]}) is None
    for forged in ({n: v for n, v in notes.items() if n != name}, notes | {name: 0}):
        assert wrong_in_step(forged).startswith(f"{name}: ")


RESULT = {
    **{f"{tree}_{metric}": 0.5 for tree in ENDED for metric in NOTED},
    **{f"{name}_digest": "0a" for name in ("student", "teacher", "optimizer")},
    "best_by_labels": {"step": 8},
    "skipped_steps": 0,
    "steps": 8,
    "seconds": 3,
    "alarms": {},
}


@pytest.mark.parametrize("metric", NOTED)
def test_results_of_runs(metric):
    result = RESULT | {"eval_metric": metric}
    assert wrong_in_result(result) is None
    assert wrong_in_result(result | {"seconds": 1.5, "best_by_labels": None}) is None
    unlabelled = {f"{tree}_{name}": None for tree in ENDED for name in NOTED}
    assert wrong_in_result(result | unlabelled) is None
    for name in result.keys() - {"alarms"}:
        missing = {other: value for other, value in result.items() if other != name}
        assert wrong_in_result(missing) == f"{name}: Field required"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seconds", 10**400),
        ("seconds", float("nan")),
        ("seconds", -1),
        ("steps", 10**400),
        ("steps", True),
        ("skipped_steps", -1),
        ("teacher_top1", 10**400),
        ("student_mean_per_class", 1.5),
        ("eval_metric", "worst"),
        ("best_by_labels", [8]),
        ("optimizer_digest", None),
    ],
)
def test_results_of_no_run(name, value):
    told = wrong_in_result(RESULT | {"eval_metric": "top1", name: value})
    assert told.startswith(f"{name}: ")
    assert "\n" not in told
