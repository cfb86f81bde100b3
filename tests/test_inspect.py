"""`--mode=inspect` from config to page, on a random little CLIP."""

import json
import os
import pathlib
import subprocess
import sys
from xml.etree import ElementTree

import jax
import numpy as np
import pytest
import tiny_run
from PIL import Image

from must_jax.errors import UserError
from must_jax.experiment import build
from must_jax.inspection import classifier, runner
from must_jax.models import encode
from must_jax.train import train

ROOT = pathlib.Path(__file__).parents[1]
FILES = {"inspect.html", "inspect.json"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tiny_run.write_all(tmp_path_factory.mktemp("inputs"))
    train_folder = folder / "train"
    (train_folder / "copy.png").write_bytes((train_folder / "000.png").read_bytes())
    (train_folder / "<b>&'\x1b[31m.png").write_bytes(b"no image")
    Image.new("RGB", (8, 90)).save(train_folder / "narrow.jpg")
    return folder


def config_of(inputs, **changes):
    return tiny_run.config(inputs, **{"loader.max_failed_fraction": 0.1, **changes})


@pytest.fixture(scope="module")
def inspected(inputs, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    report = runner.inspect_run(config_of(inputs), str(workdir))
    return report, workdir


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def expected_predictions(fields):
    """Confidence, class, record and label of the run's first epoch, by numpy."""
    experiment = build(fields)
    student = experiment.zero_shot_student()
    mean, std = np.array(experiment.spec.image_mean), np.array(experiment.spec.image_std)
    found = {"confidence": [], "predicted": [], "record": [], "label": []}
    mesh = experiment.make_mesh()
    source = experiment.train_source(mesh)
    with experiment.train_batches(source, mesh=mesh, start_step=0) as batches:
        for _ in range(len(batches) // fields.epochs):
            batch = next(batches)
            images = ((batch["image_weak"] / 255 - mean) / std).astype(np.float32)
            probabilities = softmax(np.float64(encode(experiment.model, student, images).logits))
            found["confidence"] += probabilities.max(axis=-1).tolist()
            found["predicted"] += probabilities.argmax(axis=-1).tolist()
            found["record"] += batch["record"].tolist()
            found["label"] += batch.get("label", np.zeros(0)).tolist()
    return {name: np.array(values) for name, values in found.items()}


def test_the_first_images_of_the_run_are_predicted(inputs, inspected):
    report, workdir = inspected
    expected = expected_predictions(config_of(inputs))
    assert len(report.predictions.confidence) == 32  # 39 images, the batch being 8
    assert report.predictions.predicted.tolist() == expected["predicted"].tolist()
    # float32 logits of a hundred
    assert report.predictions.confidence == pytest.approx(expected["confidence"], abs=1e-4)
    assert report.predictions.labels is None
    passing = np.mean(expected["confidence"] > 0.4)
    numbers = json.loads((workdir / "inspect.json").read_text())["zero_shot"]
    assert numbers["passing"] == pytest.approx(passing)
    assert numbers["predicted"] == np.bincount(expected["predicted"], minlength=3).tolist()


def test_labels_of_folders_tell_the_accuracy(inputs, tmp_path):
    fields = config_of(inputs)
    fields.dataset.train = fields.dataset.test
    report = runner.inspect_run(fields, str(tmp_path))
    expected = expected_predictions(fields)
    right = expected["predicted"] == expected["label"]
    confident = expected["confidence"] > 0.4
    assert report.predictions.accuracy() == pytest.approx(right.mean())
    assert report.predictions.accuracy(0.4) == pytest.approx(right[confident].mean())
    shown = {card.name: card.label for card in report.cards}
    assert len(shown) == 12
    for name, label in shown.items():
        assert pathlib.Path(name).parent.name == tiny_run.CLASSES[label]


def test_the_images_are_surveyed(inputs, inspected):
    survey = inspected[0].survey
    assert survey.looked_at == 39
    assert survey.formats == {"PNG": 37, "JPEG": 1}
    assert sorted(survey.short_sides.tolist()) == [8] + 37 * [20]
    ((name, reason),) = survey.failures
    assert name == str(inputs / "train" / "<b>&'\x1b[31m.png")
    assert "not an image" in reason
    ((first, second),) = survey.duplicates
    assert {pathlib.Path(first).name, pathlib.Path(second).name} == {"000.png", "copy.png"}


def test_facts_are_those_of_the_run(inspected):
    facts = inspected[0].facts
    assert (facts.images, facts.test_images, facts.num_classes) == (39, 21, 3)
    assert (facts.steps_per_epoch, facts.num_steps, facts.left_over) == (4, 8, 7)
    assert (facts.num_patches, facts.masked_patches) == (16, 8)  # 2 of 4 blocks of 4 patches
    assert facts.devices == jax.device_count() == 8
    assert facts.learning_rate == pytest.approx(1e-3 * 8 / 256)
    decays = [0.999 + (0.9998 - 0.999) * step / 2000 for step in range(8)]
    assert facts.start_weight == pytest.approx(np.prod(decays), rel=1e-5)  # float32 schedule


def test_the_memory_is_that_of_student_teacher_and_optimizer(inputs, inspected):
    parameters = jax.tree.leaves(build(config_of(inputs)).zero_shot_student())
    count = sum(leaf.size for leaf in parameters)
    # Four float32 of each: student, teacher and Adam's two; the rest is counters and K averages.
    assert 0 <= inspected[0].facts.state_bytes - 16 * count < 100


def test_the_page_is_complete_in_one_small_file(inspected):
    report, workdir = inspected
    assert {path.name for path in workdir.iterdir()} == FILES
    html = (workdir / "inspect.html").read_text(encoding="utf-8")
    assert len(html) < 3e6
    tree = ElementTree.fromstring(html.partition("\n")[2])
    pictures = tree.findall(".//img")
    assert len(pictures) == 4 * len(report.cards) == 48
    assert all(picture.get("src").startswith("data:image/png;base64,") for picture in pictures)
    body = "".join(tree.itertext())
    assert "noise" in body
    assert "<b>&'\\x1b[31m.png: not an image" in body
    assert "<b>&" not in html


@pytest.mark.slow
def test_a_run_starts_where_it_was_inspected_and_can_be_inspected_again(inputs, tmp_path):
    workdir = str(tmp_path / "run")
    before = runner.inspect_run(config_of(inputs), workdir)
    assert train(config_of(inputs), workdir)["steps"] == 8
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(metrics[0])["step"] == 2  # from the start, with a line every other step
    written = set(os.listdir(workdir))
    after = runner.inspect_run(config_of(inputs), workdir)
    assert set(os.listdir(workdir)) == written
    assert (before.facts.checkpoint_step, after.facts.checkpoint_step) == (None, 8)
    assert after.predictions.confidence.tolist() == before.predictions.confidence.tolist()
    old, new = before.cards[0], after.cards[0]
    assert (old.name, old.weak, old.masked) == (new.name, new.weak, new.masked)
    assert old.reconstructed != new.reconstructed
    assert old.teacher is None
    assert new.teacher is not None
    assert "step 8" in (tmp_path / "run" / "inspect.html").read_text()


def test_when_time_is_up_one_batch_has_been_predicted(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "SECONDS", 0)
    monkeypatch.setattr(classifier, "BATCH_SIZE", 2)
    report = runner.inspect_run(config_of(inputs), str(tmp_path))
    assert len(report.predictions.confidence) == 8
    assert len(report.cards) == 8
    assert (report.prompts_used, report.prompts.count) == (4, 6)  # the least that has every class
    assert "4 of the 6 prompts" in (tmp_path / "inspect.html").read_text()


def test_bad_input_writes_nothing(inputs, tmp_path):
    for field in ("train", "test", "class_names"):
        fields = config_of(inputs, **{f"dataset.{field}": str(tmp_path / "missing")})
        with pytest.raises(UserError, match="missing"):
            runner.inspect_run(fields, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        runner.inspect_run(config_of(inputs), str(tmp_path / "file" / "run"))


def test_classes_take_turns_with_their_texts():
    texts = [[f"{i}" for i in range(80)], ["one"], ["a", "b", "c"]]
    turns = classifier.in_turns(texts)
    assert [label for label, _ in turns] == [0, 1, 2, 0, 2, 0, 2] + 77 * [0]
    assert sorted(turns) == sorted((i, text) for i, said in enumerate(texts) for text in said)
    # The first of a long list are from all over it.
    few = sorted(int(text) for label, text in turns[:15] if label == 0)
    assert max(np.diff([0, *few, 80])) < 20


def test_a_classifier_with_time_enough_is_the_run_s(inputs, monkeypatch):
    monkeypatch.setattr(classifier, "BATCH_SIZE", 4)
    experiment = build(config_of(inputs))
    columns, used = classifier.zero_shot_classifier(experiment, seconds=1e9)
    assert used == 6
    expected = experiment.zero_shot_student()["classifier"]
    np.testing.assert_allclose(columns, expected, rtol=0, atol=1e-6)  # sums in another order


@pytest.mark.multiprocess
@pytest.mark.slow
def test_the_command_tells_a_summary(inputs, tmp_path):
    (tmp_path / "config.py").write_text(
        "import pathlib, sys\n"
        f"sys.path.append({str(ROOT / 'tests')!r})\n"
        "import tiny_run\n"
        f"def get_config():\n    return tiny_run.config(pathlib.Path({str(inputs)!r}))\n"
    )
    command = [sys.executable, "-m", "must_jax.main", "--mode=inspect"]
    command += [f"--config={tmp_path}/config.py", f"--workdir={tmp_path}/run"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "zero-shot on 32 images" in done.stdout
    assert "look into: 1 of the 39 images looked at do not decode" in done.stdout
    assert done.stdout.splitlines()[-1].endswith(f"{tmp_path}/run/inspect.html shows it")
    assert set(os.listdir(tmp_path / "run")) == FILES
