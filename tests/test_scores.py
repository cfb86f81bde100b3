"""Accuracies against scikit-learn's, and evaluations of files on one and on eight devices."""

import json

import jax
import numpy as np
import pytest
import tiny_run
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from must_jax import sharding
from must_jax.data.sources import decode_record
from must_jax.data.views import evaluation_view
from must_jax.errors import UserError
from must_jax.evaluate import Evaluator
from must_jax.experiment import build
from must_jax.models import encode
from must_jax.score import score_zero_shot
from must_jax.scores import Score, fields, score_of
from must_jax.train_step import normalize


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.filterwarnings("ignore:The number of unique classes is greater than 50%")
@pytest.mark.parametrize("num_classes", [2, 7, 1000])
def test_scores_are_those_of_scikit_learn(num_classes):
    """Classes of very different sizes, some of them empty."""
    rng = np.random.default_rng(num_classes)
    labels = rng.choice(num_classes, 500, p=rng.dirichlet(np.full(num_classes, 0.3)))
    predicted = np.where(rng.random(500) < 0.6, labels, rng.integers(0, num_classes, 500))
    right = np.bincount(labels[predicted == labels], minlength=num_classes)
    total = np.bincount(labels, minlength=num_classes)
    score = score_of(right, total)
    assert score.top1 == accuracy_score(labels, predicted)
    expected = balanced_accuracy_score(labels, predicted)
    assert score.mean_per_class == pytest.approx(expected, rel=1e-12)


def test_one_class_that_is_always_right_does_not_hide_the_others():
    assert score_of(np.array([98, 0, 0]), np.array([98, 2, 0])) == Score(
        top1=0.98, mean_per_class=0.5
    )


def test_fields_are_named_after_what_was_scored_and_how():
    assert fields({"student": Score(top1=0.25, mean_per_class=0.5), "teacher": None}) == {
        "student_top1": 0.25,
        "teacher_top1": None,
        "student_mean_per_class": 0.5,
        "teacher_mean_per_class": None,
    }


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """A config whose test images are 13, 2, 5 and none of four classes, and one is broken."""
    folder = tmp_path_factory.mktemp("uneven")
    tiny_run.write_checkpoint(folder / "clip")
    tiny_run.write_images(folder / "train", count=8, seed=0)
    for seed, (name, count) in enumerate({"circle": 13, "star": 2, "square": 5}.items()):
        tiny_run.write_images(folder / "test" / name, count=count, seed=seed)
    (folder / "test" / "star" / "000.png").write_bytes(b"nothing")
    (folder / "classes.txt").write_text("square\nmoon\ncircle\nstar\n")
    (folder / "templates.txt").write_text("a {}.\n")
    return tiny_run.config(folder)


def predictions(experiment, student):
    """Labels and predictions of the test images that decode, one image at a time."""
    source = experiment.test_source()
    labels, predicted = [], []
    for record in range(len(source)):
        if source.name_of(record).endswith("star/000.png"):
            continue
        image = evaluation_view(decode_record(source, record), image_size=16)
        spec = experiment.spec
        pixels = normalize(image[None], mean=spec.image_mean, std=spec.image_std)
        logits = encode(experiment.model, student, pixels).logits
        labels.append(int(source.labels[record]))
        predicted.append(int(np.argmax(logits)))
    return labels, predicted


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_an_evaluation_counts_each_image_once_on_any_number_of_devices(uneven, num_devices):
    mesh = sharding.make_mesh(devices=jax.devices()[:num_devices])
    experiment = build(uneven)
    student = experiment.zero_shot_student()
    scores = Evaluator(experiment, mesh)(zeroshot=sharding.replicate(student, mesh))
    labels, predicted = predictions(experiment, student)
    assert len(labels) == 19
    assert scores["zeroshot"].top1 == accuracy_score(labels, predicted)
    expected = balanced_accuracy_score(labels, predicted)
    assert scores["zeroshot"].mean_per_class == pytest.approx(expected, rel=1e-12)
    assert scores["zeroshot"].mean_per_class != scores["zeroshot"].top1


@pytest.mark.slow
def test_zero_shot_is_scored_without_a_workdir_and_told_beside_what_is_expected(
    uneven, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    config = uneven.copy_and_resolve_references()
    result = score_zero_shot(config, "")
    out = capsys.readouterr().out
    assert "published" not in out
    assert result["expected_percent"] is None
    assert not list(tmp_path.iterdir())
    config.expected.zeroshot = 43.4
    config.eval_metric = "mean_per_class"
    again = score_zero_shot(config, str(tmp_path / "run"))
    out = capsys.readouterr().out.splitlines()[-1]
    assert f"zero-shot accuracy {100 * result['zeroshot_top1']:.1f} %, mean per-class" in out
    assert "published mean per-class accuracy 43.4 % on 20 images of" in out
    assert again == result | {"eval_metric": "mean_per_class", "expected_percent": 43.4}
    written = json.loads((tmp_path / "run" / "zeroshot.json").read_text())
    assert written == again
    assert (written["classes"], written["texts"], written["images"]) == (4, 4, 20)


def test_zero_shot_needs_test_images_and_a_workdir_that_can_be_written(uneven, tmp_path):
    config = uneven.copy_and_resolve_references()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/run cannot be written"):
        score_zero_shot(config, str(tmp_path / "file" / "run"))
    config.dataset.test = ""
    with pytest.raises(UserError, match=r"dataset\.test is empty"):
        score_zero_shot(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_descriptions_change_the_classifier_and_may_stand_alone(uneven, tmp_path):
    config = uneven.copy_and_resolve_references()
    sentences = {"square": ["4 sides"], "moon": ["round"], "circle": ["o"], "star": ["5 tips", "x"]}
    (tmp_path / "said.json").write_text(json.dumps(sentences))
    config.dataset.descriptions = str(tmp_path / "said.json")
    both = build(config)
    assert both.texts == (
        ("a square.", "4 sides"),
        ("a moon.", "round"),
        ("a circle.", "o"),
        ("a star.", "5 tips", "x"),
    )
    config.dataset.templates = ""
    alone = build(config)
    assert alone.texts == tuple(tuple(said) for said in sentences.values())
    with_templates, without = both.zero_shot_student(), alone.zero_shot_student()
    assert not np.allclose(with_templates["classifier"], without["classifier"])
    config.dataset.descriptions = ""
    with pytest.raises(UserError, match=r"dataset\.templates is ''; it must be a path, or"):
        build(config)
