"""Whole runs on a random little CLIP: what they write, resume, report and refuse."""

import html
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
import tiny_run

from must_jax.config import read_config
from must_jax.convert.converted import SPEC_FILE
from must_jax.errors import UserError
from must_jax.resume import CONFIG_FILE
from must_jax.score import score
from must_jax.train import train


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """A finished run and its result."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    return workdir, train(tiny_run.config(inputs), str(workdir))


def metrics_of(workdir):
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in lines]


def test_a_collapse_rings_in_the_log_the_result_and_the_report(inputs, tmp_path, capsys):
    config = tiny_run.config(inputs)
    config.fair_weight = 0.0
    config.confidence_threshold = 0.0
    config.learning_rate = 1.0
    result = train(config, str(tmp_path / "run"))
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ALARM, ")]
    assert any(line.startswith("ALARM, collapse: the ") for line in told), told
    page = html.unescape((tmp_path / "run" / "report.html").read_text())
    assert result["alarms"]["collapse"] in page


def test_a_run_leaves_its_result_metrics_and_checkpoints(finished):
    workdir, result = finished
    assert json.loads((workdir / "result.json").read_text()) == result
    assert result["steps"] == 8
    assert result["failed_images"] == 0
    for name in ("zeroshot_top1", "student_top1", "teacher_top1"):
        assert 0 <= result[name] <= 1
        # 21 test images: any exact count is a multiple of 1/21.
        assert abs(result[name] * 21 - round(result[name] * 21)) < 1e-9
        # 7 of each class.
        assert result[name.replace("top1", "mean_per_class")] == pytest.approx(result[name])
    digests = {result[f"{name}_digest"] for name in ("student", "teacher", "optimizer")}
    assert [len(digest) for digest in digests] == [64] * 3
    lines = metrics_of(workdir)
    assert [line["step"] for line in lines if "train/loss" in line] == [2, 4, 6, 8]
    scored = [line for line in lines if "eval/teacher_top1" in line]
    assert [line["step"] for line in scored] == [4, 8]
    assert scored[-1]["eval/student_mean_per_class"] == result["student_mean_per_class"]
    assert set(lines[0]) == {"step"} | {
        f"train/{name}"
        for name in (
            "loss",
            "loss_self_train",
            "loss_fair",
            "loss_mim",
            "loss_align",
            "confident_fraction",
            "learning_rate",
            "ema_decay",
            "grad_norm",
        )
    }
    of_the_machine = {
        "perf/images_per_second",
        "perf/images_per_second_per_chip",
        "perf/step_seconds",
        "perf/data_wait_fraction",
        "perf/host_memory_bytes",
    }
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        told = {name for name in json.loads(line) if name.startswith("perf/")}
        assert told == (of_the_machine if "train/loss" in line else set())
    (events,) = (workdir / "tensorboard").glob("events.*")
    assert all(name.encode() in events.read_bytes() for name in of_the_machine)
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"4", "8"}
    best = result["best_by_labels"]
    assert best["teacher_top1"] >= result["teacher_top1"]


def test_the_same_run_again_ends_with_the_same_bits(finished, inputs, tmp_path):
    config = tiny_run.config(inputs)
    config.loader.num_threads = 1
    again = train(config, str(tmp_path / "run"))
    for name in ("student_digest", "teacher_digest", "optimizer_digest"):
        assert again[name] == finished[1][name]
    assert metrics_of(tmp_path / "run") == metrics_of(finished[0])


def test_another_seed_ends_elsewhere(finished, inputs, tmp_path):
    config = tiny_run.config(inputs)
    config.seed = 1
    result = train(config, str(tmp_path / "run"))
    assert result["student_digest"] != finished[1]["student_digest"]
    assert result["zeroshot_top1"] == finished[1]["zeroshot_top1"]


def test_an_interrupted_run_resumes_to_the_same_bits(finished, inputs, tmp_path, monkeypatch):
    class InterruptedRunError(Exception):
        pass

    from must_jax.progress import Progress

    log = Progress.step

    def step(self, step, metrics):
        log(self, step, metrics)
        if step == 7:
            raise InterruptedRunError

    workdir = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(Progress, "step", step)
        with pytest.raises(InterruptedRunError):
            train(tiny_run.config(inputs), str(workdir))
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["4"]
    assert metrics_of(workdir)[-1]["step"] == 6
    result = train(tiny_run.config(inputs), str(workdir))
    expected = finished[1]
    digests = ("student_digest", "teacher_digest", "optimizer_digest")
    for name in (*digests, "zeroshot_top1", "best_by_labels", "steps"):
        assert result[name] == expected[name], name
    assert metrics_of(workdir) == metrics_of(finished[0])


def test_a_finished_run_is_reported_again_and_not_trained_on(finished, inputs):
    workdir, expected = finished
    before = metrics_of(workdir)
    result = train(tiny_run.config(inputs), str(workdir))
    assert {**result, "seconds": 0} == {**expected, "seconds": 0}
    assert metrics_of(workdir) == before


def test_eval_scores_a_workdir_as_training_did(finished, capsys):
    workdir, expected = finished
    result = score(read_config(workdir / CONFIG_FILE), str(workdir))
    for name in ("zeroshot_top1", "student_top1", "teacher_top1", "steps"):
        assert result[name] == expected[name]
    assert result["test"].endswith("test")
    assert json.loads((workdir / "eval.json").read_text()) == result
    assert "step 8: zero-shot" in capsys.readouterr().out


def test_the_config_in_the_workdir_is_the_one_it_was_run_with(finished, inputs):
    assert read_config(finished[0] / CONFIG_FILE).to_dict() == tiny_run.config(inputs).to_dict()


def test_without_test_images_accuracies_are_null(inputs, tmp_path, capsys):
    config = tiny_run.config(inputs)
    config.dataset.test = ""
    config.epochs = 1
    result = train(config, str(tmp_path / "run"))
    assert result["zeroshot_top1"] is result["student_top1"] is result["teacher_top1"] is None
    assert result["best_by_labels"] is None
    out = capsys.readouterr().out
    assert "accuracy" not in out
    assert "epoch 1  without labels: consensus " in out
    chosen = result["chosen_without_labels"]
    assert chosen["epoch"] == 1
    assert chosen["teacher_top1"] is None
    assert 0 <= chosen["consensus"] <= 1
    assert out.splitlines()[-1].startswith("trained, without labelled images to test on, in ")
    with pytest.raises(UserError, match=r"dataset\.test is empty"):
        score(config, str(tmp_path / "run"))


def test_labels_in_the_training_folder_reach_a_metric_alone(inputs, finished, tmp_path):
    """The same images in class folders: the same parameters, and pseudo-label accuracy."""
    labelled = tmp_path / "train"
    names = sorted(path.name for path in (inputs / "train").iterdir())
    # Sorted paths keep their order, so that records are the same.
    for i, name in enumerate(names):
        target = labelled / sorted(tiny_run.CLASSES)[i * 3 // len(names)] / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(inputs / "train" / name, target)
    config = tiny_run.config(inputs)
    config.dataset.train = str(labelled)
    result = train(config, str(tmp_path / "run"))
    assert result["student_digest"] == finished[1]["student_digest"]
    lines = [line for line in metrics_of(tmp_path / "run") if "train/loss" in line]
    assert all(0 <= line["train/pseudo_label_accuracy"] <= 1 for line in lines)


def test_images_that_do_not_decode_are_skipped_named_and_counted(inputs, tmp_path, capsys):
    shutil.copytree(inputs / "train", tmp_path / "train")
    (tmp_path / "train" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    config = tiny_run.config(inputs)
    config.dataset.train = str(tmp_path / "train")
    config.loader.max_failed_fraction = 0.05
    result = train(config, str(tmp_path / "run"))
    assert result["failed_images"] == 1
    assert capsys.readouterr().out.count("broken.png: ") == 1
    config.loader.max_failed_fraction = 0.01
    with pytest.raises(UserError, match=r"1 of the 37 images.*max_failed_fraction"):
        train(config, str(tmp_path / "stopped"))


def test_a_test_image_that_does_not_decode_is_named_and_left_out(inputs, tmp_path, capsys):
    shutil.copytree(inputs / "test", tmp_path / "test")
    (tmp_path / "test" / "star" / "broken.jpg").write_bytes(b"nothing")
    config = tiny_run.config(inputs)
    config.dataset.test = str(tmp_path / "test")
    config.epochs = 1
    train(config, str(tmp_path / "run"))
    assert capsys.readouterr().out.count("broken.jpg: ") == 1


def test_a_workdir_of_other_classes_is_refused(inputs, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "classes.txt").write_text("circle\nsquare\nstar\nmoon\n")
    config = tiny_run.config(inputs)
    config.dataset.class_names = str(tmp_path / "classes.txt")
    with pytest.raises(UserError, match="state of another model"):
        train(config, str(tmp_path / "run"))


def test_a_step_folder_without_a_checkpoint_is_passed_over(inputs, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "99").mkdir()
    result = train(tiny_run.config(inputs), str(tmp_path / "run"))
    assert result["teacher_digest"] == finished[1]["teacher_digest"]
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {"4", "8", "incomplete-99"}


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(inputs, finished, tmp_path, capsys):
    shutil.copytree(finished[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8" / "state")
    result = train(tiny_run.config(inputs), str(tmp_path / "run"))
    told = capsys.readouterr().out
    assert re.search(r"checkpoints/8 is damaged \(.*\); passed over for step 4\n", told)
    assert result["teacher_digest"] == finished[1]["teacher_digest"]
    assert metrics_of(tmp_path / "run") == metrics_of(finished[0])
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {"4", "8", "damaged-8"}


def test_without_a_whole_checkpoint_nothing_is_started_anew(inputs, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    for step in ("4", "8"):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / step / "state")
    before = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    with pytest.raises(UserError, match=r"checkpoints/8 is damaged .* no other checkpoint"):
        train(tiny_run.config(inputs), str(tmp_path / "run"))
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == before


def test_scoring_leaves_a_checkpoint_that_is_being_written_alone(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    writing = tmp_path / "run" / "checkpoints" / "9.orbax-checkpoint-tmp"
    writing.mkdir()
    score(read_config(tmp_path / "run" / CONFIG_FILE), str(tmp_path / "run"))
    assert writing.is_dir()


def test_other_test_images_have_a_zero_shot_accuracy_of_their_own(inputs, finished, tmp_path):
    """On resuming and on scoring: the one recorded belongs to other images."""
    one_class = tmp_path / "test"
    shutil.copytree(inputs / "test" / "star", one_class / "star")
    config = tiny_run.config(inputs)
    config.dataset.test = str(one_class)
    fresh = train(config, str(tmp_path / "fresh"))
    shutil.copytree(finished[0], tmp_path / "run")
    scored = score(config, str(tmp_path / "run"))
    resumed = train(config, str(tmp_path / "run"))
    assert fresh["zeroshot_top1"] != finished[1]["zeroshot_top1"]
    for result in (scored, resumed):
        for name in ("zeroshot_top1", "student_top1", "teacher_top1"):
            assert result[name] == fresh[name], name


def test_a_file_name_that_no_terminal_takes_is_told_escaped(inputs, tmp_path, capsys):
    shutil.copytree(inputs / "train", tmp_path / "train")
    (tmp_path / "train" / "bad\udcff\nname.png").write_bytes(b"nothing")
    config = tiny_run.config(inputs)
    config.dataset.train = str(tmp_path / "train")
    config.loader.max_failed_fraction = 0.05
    train(config, str(tmp_path / "run"))
    lines = [line for line in capsys.readouterr().out.splitlines() if "skipped" in line]
    assert len(lines) == 1
    assert r"bad\udcff\nname.png" in lines[0]


def test_another_image_size_resamples_the_position_embeddings(inputs, tmp_path):
    config = tiny_run.config(inputs)
    config.image_size = 24
    config.epochs = 1
    assert (
        json.loads((pathlib.Path(config.checkpoint) / SPEC_FILE).read_text())["vision"][
            "image_size"
        ]
        == 16
    )
    result = train(config, str(tmp_path / "run"))
    assert np.isfinite(result["teacher_top1"])
