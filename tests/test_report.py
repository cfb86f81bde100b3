"""The report of whole runs on a random little CLIP: its numbers are the run's."""

import json
import math
import os
import shutil

import jax
import numpy as np
import pytest
import tiny_run
from pages import (
    check_fetches_nothing,
    check_printable,
    heads_of,
    parse,
    rows_of,
    section_of,
    text_of,
)
from PIL import Image

from must_jax import distributed
from must_jax.data.views import evaluation_view
from must_jax.errors import UserError
from must_jax.experiment import build
from must_jax.models import encode
from must_jax.reporting import runner
from must_jax.reporting.history import read_history
from must_jax.reporting.pictures import reconstructions
from must_jax.reporting.report import NoReportError
from must_jax.resume import read_state
from must_jax.train import train

# No path separator may be in the name of a class that folders are called after.
HOSTILE = "\"'><script>alert(1)<img src=x>&amp;"
NAMES = ("circle", HOSTILE, "star")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Labelled and unlabelled images, classes and files with hostile names, one file damaged."""
    folder = tiny_run.write_all(tmp_path_factory.mktemp("inputs"))
    (folder / "test" / "square").rename(folder / "test" / HOSTILE)
    (folder / "classes.txt").write_text("\n".join(NAMES))
    for place, path in enumerate(sorted((folder / "train").iterdir())):
        target = folder / "labelled" / NAMES[place % 3]
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (folder / "train" / "<b>&'\x1b[31m.png").write_bytes(b"no image")
    return folder


def config_of(inputs, **changes):
    return tiny_run.config(inputs, **{"loader.max_failed_fraction": 0.1, **changes})


@pytest.fixture(scope="module")
def labelled(inputs, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "labelled"
    fields = config_of(inputs, **{"dataset.train": str(inputs / "labelled")})
    result = train(fields, str(workdir))
    return fields, workdir, result


@pytest.fixture(scope="module")
def unlabelled(inputs, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "unlabelled"
    fields = config_of(inputs, **{"dataset.test": ""})
    return fields, workdir, train(fields, str(workdir))


def tree_of(workdir):
    return parse((workdir / "report.html").read_text(encoding="utf-8"))


def predictions(fields, workdir, folder):
    """Images by name, their labels by folder, and what zero-shot, student and teacher say."""
    experiment = build(fields)
    mesh = experiment.make_mesh()
    state = read_state(experiment, str(workdir), mesh=mesh).state
    trees = (experiment.zero_shot_student(), state.params, state.teacher_params)
    mean, std = np.array(experiment.spec.image_mean), np.array(experiment.spec.image_std)
    paths = sorted(folder.rglob("*.png"))
    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(evaluation_view(image.convert("RGB"), image_size=fields.image_size))
    pixels = ((np.stack(images) / 255 - mean) / std).astype(np.float32)
    said = [
        np.asarray(jax.nn.softmax(encode(experiment.model, jax.device_get(tree), pixels).logits))
        for tree in trees
    ]
    labels = np.array(
        [NAMES.index(path.parent.name) if path.parent.name in NAMES else -1 for path in paths]
    )
    names = [str(path.relative_to(folder)) for path in paths]
    return names, labels, *said


def classes(fields, workdir, folder):
    _, labels, *said = predictions(fields, workdir, folder)
    return labels, *(probabilities.argmax(-1) for probabilities in said)


def counted(first, second):
    """Names and number of each pair in which two labellings differ, in any order."""
    pairs = [(NAMES[a], NAMES[b]) for a, b in zip(first, second, strict=True) if a != b]
    return sorted([a, b, str(pairs.count((a, b)))] for a, b in set(pairs))


def test_labelled_runs_have_each_part_and_their_numbers(labelled):
    _, workdir, result = labelled
    tree = tree_of(workdir)
    tiles = text_of(tree.find(".//*[@class='tiles']"))
    before, after = (100 * result[f"{name}_top1"] for name in ("zeroshot", "teacher"))
    assert f"{after:.1f} %accuracy by labels, from {before:.1f} %" in tiles
    table = {name: values for name, *values in rows_of(section_of(tree, "Checkpoints"))}
    chosen, best = result["chosen_without_labels"], result["best_by_labels"]
    assert table["step"] == [str(step) for step in (result["steps"], chosen["step"], best["step"])]
    assert table["teacher's accuracy"] == [
        f"{100 * value:.1f} %"
        for value in (result["teacher_top1"], chosen["teacher_top1"], best["teacher_top1"])
    ]
    assert table["consensus"][1] == f"{chosen['consensus']:.3f}"
    run = text_of(section_of(tree, "Run"))
    assert result["student_digest"] in run
    assert result["teacher_digest"] in run
    assert ["learning_rate", "0.001"] in rows_of(section_of(tree, "Run"))


def test_pairs_and_changes_are_an_independent_count(labelled, inputs):
    fields, workdir, result = labelled
    tree = tree_of(workdir)
    by_labels, moved, differing = (
        sorted(rows_of(part))
        for part in section_of(tree, "Pairs of classes").findall("./div[@class='plots']/div")
    )
    labels, zeroshot, _, teacher = classes(fields, workdir, inputs / "test")
    assert by_labels == counted(labels, teacher)
    assert sum(int(row[2]) for row in by_labels) == round(21 * (1 - result["teacher_top1"]))
    accuracy, shares = section_of(tree, "Classes, from zero-shot to adapted").findall(".//table")
    for name, images, before, after, _ in rows_of(accuracy):
        own = labels == NAMES.index(name)
        assert int(images) == own.sum() == 7
        assert before == f"{100 * (zeroshot == labels)[own].mean():.1f} %"
        assert after == f"{100 * (teacher == labels)[own].mean():.1f} %"
    _, zeroshot, student, teacher = classes(fields, workdir, inputs / "labelled")
    assert moved == counted(zeroshot, teacher)
    assert differing == counted(teacher, student)
    assert sorted(row[:3] for row in rows_of(shares)) == sorted(
        [name, str((zeroshot == k).sum()), str((teacher == k).sum())]
        for k, name in enumerate(NAMES)
    )


def metrics_of(workdir, name):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def test_curves_are_those_of_the_metrics(labelled):
    _, workdir, _ = labelled
    for title, drawn, told, name in (
        ("Training", "sum of the losses", "loss", "train/loss"),
        ("Quality without labels", "consensus of", "consensus", "quality/consensus"),
        ("Training", "pseudo-labels that", "right", "train/pseudo_label_accuracy"),
        ("Accuracy by the test labels", "accuracy;", "teacher", "eval/teacher_top1"),
    ):
        values = metrics_of(workdir, name)
        plots = section_of(tree_of(workdir), title).findall(".//svg")
        (words,) = [
            svg.get("aria-label") for svg in plots if svg.get("aria-label").startswith(drawn)
        ]
        assert f"{told} from {values[0]:.3g} to {values[-1]:.3g}" in words
        (line, *_) = [
            svg.find("polyline") for svg in plots if svg.get("aria-label").startswith(drawn)
        ]
        assert len(line.get("points").split()) == len(values)


def test_unlabelled_runs_tell_as_much_and_nothing_of_labels(unlabelled):
    _, workdir, result = unlabelled
    tree = tree_of(workdir)
    shown = text_of(tree)
    assert "By the test labels" not in shown
    assert "Accuracy by the test labels" not in shown
    assert heads_of(section_of(tree, "Checkpoints")) == ["", "last", "chosen without labels"]
    skipped = text_of(section_of(tree, "Skipped"))
    assert result["failed_images"] == 1
    assert "1 of 37 training images (2.7 %) did not decode" in skipped
    assert "<b>&'\\x1b[31m.png: not an image" in skipped
    pictures = tree.findall(".//img")
    assert all(picture.get("src").startswith("data:image/png;base64,") for picture in pictures)
    # Least and most certain, eight each, and six sheets of four views.
    assert len(pictures) == 8 + 8 + 6 * 4


def _assert_first(shown, names, keys):
    """The eight with the smallest keys, in their order; equal to rounding, any comes first."""
    key_of = dict(zip(names, keys, strict=True))
    np.testing.assert_allclose([key_of[name] for name in shown], np.sort(keys)[:8], atol=1e-5)
    assert len(set(shown)) == len(shown)


def test_thumbnails_are_the_least_and_the_most_certain_images(labelled, inputs):
    fields, workdir, _ = labelled
    least, most, mistakes = section_of(tree_of(workdir), "Images").findall(
        "./div[@class='gallery pixels']"
    )

    def shown(gallery):
        return [text_of(caption.find("code")) for caption in gallery.iter("figcaption")]

    names, _, _, _, teacher = predictions(fields, workdir, inputs / "labelled")
    confidence, said = teacher.max(axis=-1), teacher.argmax(axis=-1)
    _assert_first(shown(least), names, confidence)
    of_each_class = [
        max(np.flatnonzero(said == k), key=lambda place: confidence[place]) for k in np.unique(said)
    ]
    assert set(shown(most)) >= {names[place] for place in of_each_class}
    names, labels, _, _, teacher = predictions(fields, workdir, inputs / "test")
    wrong = np.flatnonzero(teacher.argmax(axis=-1) != labels)
    where = {names[place]: place for place in wrong}
    _assert_first(shown(mistakes), list(where), -teacher[wrong].max(axis=-1))
    for caption, name in zip(mistakes.iter("figcaption"), shown(mistakes), strict=True):
        place = where[name]
        top = teacher[place].argmax()
        assert text_of(caption.find("b")) == f"{NAMES[top]} {teacher[place, top]:.1%}"
        assert f"label: {NAMES[labels[place]]}" in text_of(caption)


def test_hostile_names_reach_the_page_as_text_alone(labelled, unlabelled):
    for _, workdir, _ in (labelled, unlabelled):
        html = (workdir / "report.html").read_text(encoding="utf-8")
        check_printable(html)
        check_fetches_nothing(html)
        assert HOSTILE in text_of(parse(html))
        assert "<script" not in html
        assert len(html) < 500_000


def test_the_report_can_be_made_again_and_is_the_same(labelled, tmp_path):
    fields, workdir, _ = labelled
    before = (workdir / "report.html").read_bytes()
    (workdir / "report.html").unlink()
    runner.report_again(fields, str(workdir))
    assert (workdir / "report.html").read_bytes() == before


def test_a_run_that_has_not_ended_has_no_report(labelled, tmp_path):
    fields, workdir, _ = labelled
    with pytest.raises(UserError, match="train the run to its end"):
        runner.report_again(fields, str(tmp_path))
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    result = json.loads((copy / "result.json").read_text())
    (copy / "result.json").write_text(json.dumps(result | {"steps": 99}))
    with pytest.raises(UserError, match=r"is at step 8, and its result\.json is of step 99"):
        runner.report_again(fields, str(copy))


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[" * 100_000,
        "pipe",
        {"eval_metric": "worst"},
        {"seconds": "x"},
        {"seconds": 10**400},
        {"teacher_top1": "x"},
        {"student_digest": None},
    ],
)
def test_a_result_that_no_run_wrote_is_refused(labelled, tmp_path, content):
    fields, _, result = labelled
    path = tmp_path / "result.json"
    if content == "pipe":
        os.mkfifo(path)
    else:
        text = json.dumps(result | content) if isinstance(content, dict) else content
        path.write_text(text)
    with pytest.raises(UserError, match=r"result\.json"):
        runner.report_again(fields, str(tmp_path))


@pytest.mark.parametrize("line", ["[" * 100_000, f'{{"step": 1{"0" * 400}, "a": 1}}'])
def test_lines_that_no_run_wrote_are_passed_over(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{line}\n{{"step": 4, "a": 1.5, "b": 1e308}}\n')
    history = read_history(path, steps_per_epoch=2)
    assert history["a"][-1] == (2.0, 1.5)
    assert math.isnan(history["b"][-1][1])
    path.unlink()
    os.mkfifo(path)
    assert read_history(path, steps_per_epoch=2) == {}


def test_images_that_were_removed_since_are_not_taken_for_others(labelled, tmp_path, capsys):
    fields, workdir, _ = labelled
    shutil.copytree(workdir, tmp_path / "run")
    images = tmp_path / "train"
    shutil.copytree(fields.dataset.train, images)
    first = min(path for path in images.rglob("*.png"))
    first.unlink()
    fields = fields.copy_and_resolve_references()
    fields.dataset.train = str(images)
    runner.report_again(fields, str(tmp_path / "run"))
    assert f"{images} has other images than the run had" in capsys.readouterr().out


def test_a_full_disk_does_not_fail_the_run(labelled, monkeypatch, capsys):
    fields, workdir, result = labelled
    before = (workdir / "report.html").read_bytes()

    def full(path, html):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runner, "write_page", full)
    again = train(fields, str(workdir))
    assert again["teacher_digest"] == result["teacher_digest"]
    *_, told, last = capsys.readouterr().out.splitlines()
    assert told.startswith(f"no report was made: {workdir}/report.html cannot be written (No space")
    assert "-> teacher" in last
    assert (workdir / "report.html").read_bytes() == before


def test_images_that_another_process_can_not_read_end_the_report_on_all(labelled, monkeypatch):
    """This one reads them, and must not go on to what the other has no part in."""
    fields, _, _ = labelled
    experiment = build(fields)
    mesh = experiment.make_mesh()
    source = experiment.train_source(mesh)
    theirs = f"no image in {source.path} decodes"
    monkeypatch.setattr(distributed, "gather", lambda ours: [ours, theirs])
    with pytest.raises(NoReportError, match=theirs):
        reconstructions(experiment, source, mesh, student={})
