"""Runs that go on from an odd moment: what their checkpoints tell is what they did."""

import os
import shutil
import signal
import time

import pytest
import tiny_run

from must_jax import resume
from must_jax import train as training
from must_jax.checkpoint import complete_steps
from must_jax.errors import LostInputError, StoppedError, UserError
from must_jax.evaluate import Evaluator
from must_jax.experiment import build
from must_jax.reporting import runner
from must_jax.resume import CHOSEN, read_state
from must_jax.saving import Saving
from must_jax.train import train
from must_jax.workdir_lock import WorkdirLock


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    return workdir, train(tiny_run.config(inputs), str(workdir))


def notes_of(inputs, workdir, **which):
    experiment = build(tiny_run.config(inputs))
    restored = read_state(experiment, str(workdir), mesh=experiment.make_mesh(), **which)
    return restored.step, restored.notes


def test_stopped_in_its_last_evaluation_a_run_remembers_it_all_the_same(
    finished, inputs, tmp_path, monkeypatch
):
    workdir = tmp_path / "run"
    evaluate = Evaluator.__call__
    evaluations = []

    def stop_in_the_third(self, **keywords):  # zero-shot, epoch 1, epoch 2
        evaluations.append(None)
        if len(evaluations) == 3:
            raise StoppedError
        return evaluate(self, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(Evaluator, "__call__", stop_in_the_third)
        with pytest.raises(StoppedError):
            train(tiny_run.config(inputs), str(workdir))
    step, notes = notes_of(inputs, workdir)
    assert (step, notes["evaluated_step"]) == (8, 4)
    result = train(tiny_run.config(inputs), str(workdir))
    (_, expected), (step, notes) = notes_of(inputs, finished[0]), notes_of(inputs, workdir)
    assert step == 8
    assert notes["evaluations"] == expected["evaluations"]
    assert notes["best_by_labels"] == expected["best_by_labels"]
    chosen, _ = notes_of(inputs, workdir, which=CHOSEN)
    assert chosen == result["chosen_without_labels"]["step"]
    for digest in ("student_digest", "teacher_digest", "optimizer_digest"):
        assert result[digest] == finished[1][digest]


def test_of_two_starts_in_a_new_workdir_the_slower_one_harms_nothing(inputs, tmp_path, monkeypatch):
    """It has read that there is no checkpoint; when it gets the lock, there are two."""
    workdir = tmp_path / "run"
    take = WorkdirLock.take

    def let_the_other_run_first(self):
        monkeypatch.setattr(WorkdirLock, "take", take)
        train(tiny_run.config(inputs), str(workdir))
        take(self)

    monkeypatch.setattr(WorkdirLock, "take", let_the_other_run_first)
    with pytest.raises(UserError, match=f"another run has written to {workdir} since"):
        train(tiny_run.config(inputs), str(workdir))
    assert complete_steps(str(workdir)) == [4, 8]
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 6


def test_where_the_best_evaluation_has_no_checkpoint_the_next_is_taken(
    finished, inputs, tmp_path, monkeypatch, capsys
):
    shutil.copytree(finished[0], tmp_path / "run")
    monkeypatch.setattr(resume, "ranking", lambda history: [0, 1])  # the first epoch is best
    assert notes_of(inputs, tmp_path / "run", which=CHOSEN)[0] == 4
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    capsys.readouterr()
    assert notes_of(inputs, tmp_path / "run", which=CHOSEN)[0] == 8
    assert capsys.readouterr().out == (
        "the best without labels, step 4, has no checkpoint; the next is step 8\n"
    )


def test_test_images_that_have_moved_keep_the_best_epoch(
    finished, inputs, tmp_path, capsys, monkeypatch
):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    shutil.copytree(inputs / "test", tmp_path / "moved")
    config = tiny_run.config(inputs, **{"dataset.test": str(tmp_path / "moved")})
    result = train(config, str(workdir))
    assert result["best_by_labels"] == finished[1]["best_by_labels"]
    assert "looked for anew" not in capsys.readouterr().out
    shutil.rmtree(tmp_path / "moved" / "star")
    shutil.copytree(tmp_path / "moved", tmp_path / "fewer")
    config = tiny_run.config(inputs, **{"dataset.test": str(tmp_path / "fewer")})
    assert train(config, str(workdir))["best_by_labels"] is None
    assert "the best epoch by labels is looked for anew" in capsys.readouterr().out
    shown = []
    monkeypatch.setattr(runner, "write_report", lambda run, **_: shown.append(run.notes))
    for folder, is_same in ((inputs / "test", True), (tmp_path / "fewer", False)):
        config = tiny_run.config(inputs, **{"dataset.test": str(folder)})
        runner.report_again(config, str(workdir))
        known = [one["teacher_top1"] is not None for one in shown.pop().evaluations]
        assert known
        assert all(one == is_same for one in known)


def test_a_stop_is_why_the_report_lost_its_images(finished, inputs, tmp_path, monkeypatch):
    shutil.copytree(finished[0], tmp_path / "run")

    def lose(run, *, between_batches):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)  # another thread hears it
        raise LostInputError("gone")

    monkeypatch.setattr(training, "write_report", lose)
    with pytest.raises(StoppedError):
        train(tiny_run.config(inputs), str(tmp_path / "run"))


def test_where_lost_images_end_a_run_that_cannot_be_saved_they_are_why(
    inputs, tmp_path, monkeypatch, capsys
):
    def lose(self, **_):
        raise LostInputError("gone")

    def fail(self, state, **_):
        raise UserError("the disk is full")

    monkeypatch.setattr(Saving, "save_last", fail)
    monkeypatch.setattr(training._Run, "_evaluate_epoch", lose)
    with pytest.raises(LostInputError, match="gone"):
        train(tiny_run.config(inputs), str(tmp_path / "run"))
    assert capsys.readouterr().out.endswith("the disk is full\n")
