"""Predictions of whole sources: exact in number, equal to evaluation, resumed, told, refused."""

import csv
import dataclasses
import io
import json
import pathlib

import image_kinds
import jax
import numpy as np
import pytest
import tiny_run
from PIL import Image

from must_jax import predict as predict_module
from must_jax import sharding
from must_jax.checkpoint_writer import Checkpoints
from must_jax.data.decode import decode_image
from must_jax.data.views import evaluation_view
from must_jax.errors import UserError
from must_jax.evaluate import Evaluator
from must_jax.experiment import build
from must_jax.predict import Request, predict
from must_jax.predictions import Output
from must_jax.state import init_state


@pytest.fixture(scope="module")
def run(inputs):
    """A workdir whose student and teacher differ from each other and from zero-shot, and these."""
    experiment = build(tiny_run.config(inputs))
    mesh = experiment.make_mesh()
    zeroshot = experiment.zero_shot_student()
    shapes = experiment.student_shapes()
    optimizer = experiment.step_keywords(shapes, steps_per_epoch=1)["optimizer"]

    def other(seed):
        columns = np.asarray(zeroshot["classifier"])
        noise = np.random.default_rng(seed).normal(size=columns.shape)
        return {**zeroshot, "classifier": (columns + 0.3 * noise).astype(np.float32)}

    trees = {"zeroshot": zeroshot, "student": other(1), "teacher": other(2)}
    state = init_state(jax.tree.map(np.asarray, trees["student"]), optimizer=optimizer)
    state = dataclasses.replace(state, teacher_params=trees["teacher"])
    checkpoints = Checkpoints(str(inputs / "run"), to_keep=1, step=0)
    checkpoints.save(sharding.replicate(state, mesh), step=1, notes={})
    checkpoints.close()
    return str(inputs / "run"), trees


def rows_of(path):
    with pathlib.Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def alone(inputs):
    """Probabilities (images, K) of parameters for the files at paths, one image at a time."""
    model = build(tiny_run.config(inputs)).model
    mean, std = np.array([tiny_run.SPEC.image_mean, tiny_run.SPEC.image_std], np.float32)
    softmax = jax.jit(lambda p, image: jax.nn.softmax(model.apply({"params": p}, image).logits[0]))

    def probabilities(params, paths):
        images = [decode_image(path.read_bytes(), name=str(path)) for path in paths]
        views = [np.float32(evaluation_view(image, image_size=16)) / 255 for image in images]
        return np.stack([softmax(params, (view[None] - mean) / std) for view in views])

    return probabilities


@pytest.mark.parametrize("tree", ["teacher", "student", "zeroshot"])
def test_every_image_is_predicted_once_in_order_as_it_is_alone(
    tree, inputs, run, alone, tmp_path, capsys
):
    workdir, trees = run
    path = tmp_path / "out.csv"
    request = Request(images=str(inputs / "test"), tree=tree, output=str(path))
    # 21 images in batches of 8, on 8 devices.
    tally = predict(tiny_run.config(inputs), workdir, request=request)
    images = sorted((inputs / "test").rglob("*.png"), key=lambda p: str(p.relative_to(inputs)))
    rows = rows_of(path)
    assert [row["path"] for row in rows] == [str(image) for image in images]
    assert {row["predicted_by"] for row in rows} == {tree}
    probabilities = alone(trees[tree], images)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    for row, ranked, p in zip(rows, order, probabilities, strict=True):
        # All of the three classes, fewer than the usual five.
        assert [row[f"class_{i}"] for i in (1, 2, 3)] == [tiny_run.CLASSES[k] for k in ranked]
        told = [float(row[f"probability_{i}"]) for i in (1, 2, 3)]
        # float32 arithmetic of other batches.
        np.testing.assert_allclose(told, p[ranked], rtol=2e-4, atol=1e-6)
    assert tally.images == sum(tally.counts) == 21
    assert tally.counts == np.bincount(order[:, 0], minlength=3).tolist()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{tree} predicted 21 images: ")
    assert f"mean confidence {100 * tally.confidence / 21:.1f} %; written to {path}" in line


def test_the_trees_differ_or_nothing_tells_them_apart(inputs, run, alone):
    images = sorted((inputs / "test").rglob("*.png"))
    classes = [alone(params, images).argmax(axis=1).tolist() for params in run[1].values()]
    assert len({tuple(each) for each in classes}) == 3


def test_accuracy_by_the_rows_is_what_evaluation_says(inputs, run, tmp_path):
    workdir, trees = run
    config = tiny_run.config(inputs)
    experiment = build(config)
    mesh = experiment.make_mesh()
    on_mesh = {n: sharding.put(p, sharding.state_shardings(mesh, p)) for n, p in trees.items()}
    scores = Evaluator(experiment, mesh)(**on_mesh)
    for tree in trees:
        path = tmp_path / f"{tree}.csv"
        request = Request(images=str(inputs / "test"), tree=tree, output=str(path), top_k=1)
        predict(config, workdir, request=request)
        right = [row["class_1"] == pathlib.Path(row["path"]).parent.name for row in rows_of(path)]
        assert np.mean(right) == scores[tree].top1


@pytest.mark.parametrize("kind", image_kinds.KINDS)
def test_every_kind_of_source_is_read_and_named(kind, inputs, run, tmp_path):
    images = [(path.read_bytes(), None) for path in sorted((inputs / "train").iterdir())[:7]]
    fields = image_kinds.write(kind, tmp_path / "source", images, names=tiny_run.CLASSES)
    config = tiny_run.config(inputs)
    config.dataset.tfds = fields.get("tfds", "")
    config.dataset.data_dir = fields.get("data_dir", "")
    config.dataset.train = fields["path"]
    path = tmp_path / "out.jsonl"
    tally = predict(
        config, run[0], request=Request(output=str(path), sort_into=str(tmp_path / "s"))
    )
    assert tally.images == 7
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({row["path"] for row in rows}) == 7
    placed = list((tmp_path / "s").rglob("*.png"))
    assert sorted(p.read_bytes() for p in placed) == sorted(data for data, _ in images)
    for place in placed:
        assert place.parent.name in {row["class_1"] for row in rows}


def test_a_path_is_no_split_of_the_data_set_that_the_run_had(inputs, run, tmp_path):
    config = tiny_run.config(inputs)
    config.dataset.tfds = "nothing_of_the_kind"
    request = Request(images=str(inputs / "test"), output=str(tmp_path / "out.csv"))
    assert predict(config, run[0], request=request).images == 21


@pytest.fixture
def damaged(tmp_path):
    """13 images, of which two do not decode, called what a file may be called."""
    tiny_run.write_images(tmp_path / "damaged", count=11, seed=0)
    (tmp_path / "damaged/004,\n.png").write_bytes(b"no image")
    (tmp_path / "damaged" / b"caf\xe9.png".decode("utf-8", "surrogateescape")).write_bytes(b"")
    return tmp_path / "damaged"


def test_images_that_do_not_decode_keep_their_rows_and_are_listed(
    inputs, run, damaged, tmp_path, capsys
):
    path = tmp_path / "out.csv"
    request = Request(images=str(damaged), output=str(path), sort_into=str(tmp_path / "sorted"))
    tally = predict(tiny_run.config(inputs), run[0], request=request)
    assert (tally.images, tally.failed, sum(tally.counts)) == (13, 2, 11)
    rows = rows_of(path)
    empty = [row["path"] for row in rows if not row["class_1"]]
    assert len(rows) == 13
    assert empty == [f"{damaged}/004,\n.png", f"{damaged}/caf\\xe9.png"]
    assert rows_of(f"{path}.failed.csv") == [
        {"path": empty[0], "reason": "not an image, or of an unknown format"},
        {"path": empty[1], "reason": "empty"},
    ]
    assert len(list((tmp_path / "sorted").rglob("*.png"))) == 11
    assert f"of which 2 failed, listed in {path}.failed.csv" in capsys.readouterr().out


def test_a_stopped_run_goes_on_to_the_same_file(
    inputs, run, damaged, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(predict_module, "COMMIT_SECONDS", -1)
    config = tiny_run.config(inputs)

    def go(name):
        request = Request(
            images=str(damaged), output=f"{tmp_path}/{name}.csv", sort_into=f"{tmp_path}/{name}"
        )
        return predict(config, run[0], request=request)

    expected = go("whole")
    add = Output.add

    def stopping(self, predicted):
        add(self, predicted)
        if self.tally.images > 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as stop:
        stop.setattr(Output, "add", stopping)
        with pytest.raises(KeyboardInterrupt):
            go("out")
    assert not (tmp_path / "out.csv").exists()
    capsys.readouterr()
    assert go("out") == expected
    assert "going on after 8 of 13 images" in capsys.readouterr().out
    for ending in (".csv", ".csv.failed.csv"):
        whole, ours = ((tmp_path / f"{n}{ending}").read_bytes() for n in ("whole", "out"))
        assert ours == whole
    whole, ours = (
        sorted(str(p.relative_to(tmp_path / name)) for p in (tmp_path / name).rglob("*"))
        for name in ("whole", "out")
    )
    assert ours == whole
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == [
        f"{name}.csv{more}" for name in ("out", "whole") for more in ("", ".failed.csv")
    ]


def test_other_images_are_not_gone_on_with(inputs, run, tmp_path, monkeypatch):
    tiny_run.write_images(tmp_path / "images", count=3, seed=0)
    request = Request(images=str(tmp_path / "images"), output=str(tmp_path / "out.csv"))
    with monkeypatch.context() as stop:
        stop.setattr(Output, "finish", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predict(tiny_run.config(inputs), run[0], request=request)
    (tmp_path / "images/002.png").rename(tmp_path / "images/003.png")
    with pytest.raises(UserError, match=r"out\.csv was begun with .* names .*progress\.json"):
        predict(tiny_run.config(inputs), run[0], request=request)


def test_one_image_is_enough(inputs, run, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    (tmp_path / "one").mkdir()
    (tmp_path / "one/x.png").write_bytes(file.getvalue())
    request = Request(images=str(tmp_path / "one"), output=str(tmp_path / "out.parquet"))
    assert predict(tiny_run.config(inputs), run[0], request=request).images == 1


REFUSED = {
    "top_k": ({"top_k": 4}, "--top_k=4 must be from 1 to 3"),
    "no top_k": ({"top_k": 0}, "--top_k=0 must be from 1 to 3"),
    "ending": ({"output": "{tmp}/out.txt"}, r"a name that ends in \.csv, \.jsonl or \.parquet"),
    "images": ({"images": "{tmp}/nowhere"}, "nowhere does not exist"),
    "nothing decodes": ({"images": "{tmp}/bad"}, "none of the 1 images that were tried"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_requests_are_one_line_and_write_nothing(case, inputs, run, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/x.png").write_bytes(b"no image")
    fields, told = REFUSED[case]
    fields = {"output": "{tmp}/out.csv"} | fields
    formatted = {n: v.format(tmp=tmp_path) if isinstance(v, str) else v for n, v in fields.items()}
    with pytest.raises(UserError, match=told):
        predict(tiny_run.config(inputs), run[0], request=Request(**formatted))
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_without_a_checkpoint_only_zero_shot_predicts(inputs, tmp_path):
    request = Request(images=str(inputs / "test"))
    with pytest.raises(UserError, match="no complete checkpoint"):
        predict(tiny_run.config(inputs), str(tmp_path), request=request)
    request = dataclasses.replace(request, tree="zeroshot")
    assert predict(tiny_run.config(inputs), str(tmp_path), request=request).images == 21
    assert len(rows_of(tmp_path / "predictions.csv")) == 21


def test_a_model_that_diverged_is_refused(inputs, tmp_path, monkeypatch):
    def broken(experiment, mesh, **_):
        student = experiment.zero_shot_student()
        student["classifier"] = student["classifier"] * np.float32("nan")
        return sharding.put(student, sharding.state_shardings(mesh, student))

    monkeypatch.setattr(predict_module, "_parameters", broken)
    with pytest.raises(UserError, match="no numbers"):
        predict(tiny_run.config(inputs), str(tmp_path), request=Request())
    assert not (tmp_path / "predictions.csv").exists()
