"""What a run's result tells by labels, when metric or test images change while it goes on."""

import json
import shutil

import pytest
import tiny_run

from must_jax.checkpoint import COMPLETE, told_beside
from must_jax.results import best_by_labels, forget_others
from must_jax.run_notes import RunNotes
from must_jax.scores import fields
from must_jax.train import train

UNKNOWN = fields({"student": None, "teacher": None})
DIGESTS = ("0a" * 32, "0b" * 32)


def evaluation(epoch, top1, mean_per_class):
    teacher = {"teacher_top1": top1, "teacher_mean_per_class": mean_per_class}
    student = {"student_top1": top1, "student_mean_per_class": mean_per_class}
    return {"step": 4 * epoch, "epoch": epoch, **student, **teacher, "quality": {}, "alarms": {}}


def best(epoch, top1, mean_per_class):
    told = evaluation(epoch, top1, mean_per_class)
    return {n: told[n] for n in ("step", "epoch", "teacher_top1", "teacher_mean_per_class")}


EVALUATIONS = [evaluation(1, 0.5, 0.8), evaluation(2, 0.6, 0.6), evaluation(3, 0.6, 0.65)]


def notes_of(workdir, step):
    record = json.loads((workdir / "checkpoints" / str(step) / COMPLETE).read_text())
    return record["custom_metadata"]["notes"]


def change_notes(workdir, step, change):
    file = workdir / "checkpoints" / str(step) / COMPLETE
    record = json.loads(file.read_text())
    told = record["custom_metadata"]
    change(told["notes"])
    record["custom_metadata"] = told_beside(told["notes"], told["shapes"])
    file.write_text(json.dumps(record))


def test_the_best_epoch_is_that_of_all_by_the_metric_of_now():
    # The best so far was so by the other metric.
    notes = RunNotes(facts={}, evaluations=EVALUATIONS, best_by_labels=best(2, 0.6, 0.6))
    assert best_by_labels(notes, "mean_per_class") == best(1, 0.5, 0.8)
    notes.best_by_labels = best(1, 0.5, 0.8)
    assert best_by_labels(notes, "top1") == best(2, 0.6, 0.6)  # of equal ones the first
    assert best_by_labels(RunNotes(facts={}), "top1") is None
    unlabelled = RunNotes(facts={}, evaluations=[evaluation(1, None, None)])
    assert best_by_labels(unlabelled, "top1") is None


def test_the_best_epoch_that_earlier_versions_noted_without_the_others_counts():
    noted = best(1, 0.7, 0.5)
    notes = RunNotes(facts={}, best_by_labels=noted)
    assert best_by_labels(notes, "top1") == noted
    notes.evaluations = EVALUATIONS[1:]
    assert best_by_labels(notes, "top1") == noted
    assert best_by_labels(notes, "mean_per_class") == best(3, 0.6, 0.65)


@pytest.mark.parametrize(
    ("noted", "zero_shot", "are_others"),
    [
        (DIGESTS[0], 0.4, False),
        (DIGESTS[1], 0.4, True),  # other images on which zero-shot CLIP happens to be as good
        (DIGESTS[1], 0.5, True),
        ("/data/test", 0.4, False),  # as earlier versions noted them
        ("/data/test", 0.5, True),
        (None, None, True),
    ],
)
def test_accuracies_on_other_test_images_are_forgotten(noted, zero_shot, are_others):
    notes = RunNotes(
        facts={},
        test=noted,
        zero_shot={"zeroshot_top1": zero_shot},
        best_by_labels=best(2, 0.6, 0.6),
        evaluations=[dict(one) for one in EVALUATIONS],
    )
    now = {"zeroshot_top1": 0.4}
    assert forget_others(notes, test=DIGESTS[0], zero_shot=now) is are_others
    expected = [one | UNKNOWN if are_others else one for one in EVALUATIONS]
    assert notes.evaluations == expected
    assert notes.best_by_labels == (None if are_others else best(2, 0.6, 0.6))


def test_a_run_that_goes_on_by_another_metric_has_the_best_epoch_by_that(inputs, workdir):
    def change(notes):
        for one, other in zip(notes["evaluations"], EVALUATIONS, strict=False):
            one |= {name: other[name] for name in UNKNOWN}
        notes["best_by_labels"] = best(2, 0.6, 0.6)

    change_notes(workdir, 8, change)
    config = tiny_run.config(inputs, eval_metric="mean_per_class")
    assert train(config, str(workdir))["best_by_labels"] == best(1, 0.5, 0.8)


def test_a_run_that_goes_on_on_other_test_images_compares_nothing_with_those_before(
    inputs, workdir, tmp_path, capsys
):
    """Here the same ones by other names, so that zero-shot CLIP is as good on them."""
    shutil.copytree(inputs / "test", tmp_path / "test")
    (tmp_path / "test" / "star" / "000.png").rename(tmp_path / "test" / "star" / "999.png")
    shutil.rmtree(workdir / "checkpoints" / "8")

    def change(notes):
        notes["best_by_labels"] = best(1, 1.0, 1.0)
        notes["evaluations"][0] |= dict.fromkeys(UNKNOWN, 1.0)

    change_notes(workdir, 4, change)
    config = tiny_run.config(inputs, **{"dataset.test": str(tmp_path / "test")})
    result = train(config, str(workdir))
    assert "the best epoch by labels is looked for anew" in capsys.readouterr().out
    accuracies = {name: result[name] for name in UNKNOWN}
    assert result["best_by_labels"] == best(
        2, result["teacher_top1"], result["teacher_mean_per_class"]
    )
    first, second = notes_of(workdir, 8)["evaluations"]
    assert {name: first[name] for name in UNKNOWN} == UNKNOWN
    assert {name: second[name] for name in UNKNOWN} == accuracies
    chosen = result["chosen_without_labels"]
    assert chosen["teacher_top1"] == (None if chosen["epoch"] == 1 else result["teacher_top1"])
