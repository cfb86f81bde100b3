"""A probe's images that decode at one evaluation and not at another, as of a file that was away."""

import json
import shutil

import numpy as np
import pytest
import tiny_run

from must_jax.checkpoint import COMPLETE, told_beside
from must_jax.evaluate import Evaluator
from must_jax.experiment import build
from must_jax.quality import ProbePredictions, alarms, measure
from must_jax.reporting.runner import write_report
from must_jax.resume import read_state
from must_jax.train import train

BROKEN = [3, 20, 35]
NUM_IMAGES = 36


def predictions(seed, *, known=True, only=slice(None)):
    p = np.random.default_rng(seed).dirichlet(np.full(4, 0.5), 50)
    return ProbePredictions.of(p[only], is_known=np.broadcast_to(known, 50)[only])


@pytest.mark.parametrize("seed", range(3))
def test_measures_are_of_the_images_that_decoded(seed):
    rng = np.random.default_rng(seed)
    before, now, then = (rng.random(50) < 0.8 for _ in range(3))
    found = measure(
        zeroshot=predictions(1, known=before),
        student=predictions(2, known=now),
        teacher=predictions(3, known=now),
        teacher_before=predictions(4, known=then),
        threshold=0.6,
    )

    def of(only):
        zeroshot, student, teacher, teacher_before = (
            predictions(i, only=only) for i in range(1, 5)
        )
        return measure(
            zeroshot=zeroshot,
            student=student,
            teacher=teacher,
            teacher_before=teacher_before,
            threshold=0.6,
        )

    assert (found.student, found.teacher) == (of(now).student, of(now).teacher)
    assert (found.teacher_student, found.consensus) == (of(now).teacher_student, of(now).consensus)
    assert found.zeroshot == of(before).zeroshot
    both = of(now & before)
    for name in ("teacher_zeroshot", "student_zeroshot", "sure_teacher_zeroshot"):
        assert getattr(found, name) == getattr(both, name), name
    assert found.sure_confidence == both.sure_confidence
    assert found.stability == of(now & then).stability


def test_nothing_to_compare_is_no_number_and_no_alarm():
    known = np.arange(50) < 25
    one, other = predictions(1, known=known), predictions(1, known=~known)
    found = measure(
        zeroshot=one, student=other, teacher=other, teacher_before=one, threshold=0.9999
    )
    for value in (found.teacher_zeroshot, found.sure_teacher_zeroshot, found.stability):
        assert np.isnan(value)
    assert "departed" not in [alarm.name for alarm in alarms([found])]


@pytest.fixture(scope="module")
def broken_at(tmp_path_factory):
    """Runs of which images are broken from an evaluation on: 0 for all of the run."""

    def run(evaluation):
        folder = tiny_run.write_all(tmp_path_factory.mktemp("run"))
        config = tiny_run.config(folder, **{"loader.max_failed_fraction": 0.5})
        evaluate = Evaluator.__call__
        calls = []

        def break_some(self, **keywords):
            if len(calls) == evaluation:
                for record in BROKEN:
                    (folder / "train" / f"{record:03}.png").write_bytes(b"broken")
            calls.append(None)
            return evaluate(self, **keywords)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Evaluator, "__call__", break_some)
            train(config, str(folder / "workdir"))
        return folder, config

    return run


def notes_of(folder, config):
    experiment = build(config)
    return read_state(experiment, str(folder / "workdir"), mesh=experiment.make_mesh()).notes


@pytest.mark.slow
def test_a_run_goes_on_where_images_of_the_probe_are_gone(broken_at):
    folder, config = broken_at(2)  # zero-shot, epoch 1, epoch 2
    probe = notes_of(folder, config)["probe"]
    assert -1 not in probe["zeroshot"]["predicted"]
    lost = np.flatnonzero(np.array(probe["teacher"]["predicted"]) == -1)
    assert lost.tolist() == BROKEN
    zeroshot, teacher = (np.array(probe[name]["predicted"]) for name in ("zeroshot", "teacher"))
    kept = np.delete(np.arange(NUM_IMAGES), BROKEN)
    last = json.loads((folder / "workdir" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["quality/teacher_zeroshot"] == np.mean(zeroshot[kept] == teacher[kept])
    page = (folder / "workdir" / "report.html").read_text()
    assert f"Of {NUM_IMAGES - len(BROKEN)} training images, spread evenly" in page


@pytest.mark.slow
def test_a_run_ends_well_whose_images_are_gone_when_it_reports(tmp_path, monkeypatch, capsys):
    folder = tiny_run.write_all(tmp_path / "inputs")

    def with_all_broken(run, **keywords):
        for path in (folder / "train").iterdir():
            path.write_bytes(b"broken")
        write_report(run, **keywords)

    monkeypatch.setattr("must_jax.train.write_report", with_all_broken)
    result = train(tiny_run.config(folder, epochs=1), str(tmp_path / "run"))
    assert result["failed_images"] == 0
    told = capsys.readouterr().out
    assert "no report was made: none of the images that it shows of " in told
    assert not (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
def test_a_probe_that_an_earlier_version_noted_without_some_images_is_made_anew(broken_at):
    """It left out those that did not decode: nobody knows any more which ones."""
    folder, config = broken_at(0)
    expected = notes_of(folder, config)
    assert [i for i, c in enumerate(expected["probe"]["zeroshot"]["predicted"]) if c < 0] == BROKEN
    checkpoints = folder / "workdir" / "checkpoints"
    shutil.rmtree(checkpoints / "8")
    file = checkpoints / "4" / COMPLETE
    record = json.loads(file.read_text())
    told = record["custom_metadata"]
    for one in told["notes"]["probe"].values():
        for name in ("predicted", "confidence"):
            one[name] = [value for i, value in enumerate(one[name]) if i not in BROKEN]
    record["custom_metadata"] = told_beside(told["notes"], told["shapes"])
    file.write_text(json.dumps(record))
    train(config, str(folder / "workdir"))
    assert notes_of(folder, config)["probe"] == expected["probe"]
