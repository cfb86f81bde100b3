"""The published recipes: their constants, and a few steps of each on generated images."""

import dataclasses
import importlib.util
import json
import pathlib

import benchmark_images
import jax
import numpy as np
import pytest
import tiny_run

from must_jax import config as config_lib
from must_jax.class_names import read_class_names
from must_jax.errors import UserError
from must_jax.experiment import build
from must_jax.train import train

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
DATA_SETS = ("imagenet", "sun397", "food101", "gtsrb", "dtd", "ucf101", "pets", "caltech101")

COLUMNS = (
    "mask_patch_size",
    "ema_decay_initial",
    "ema_warmup_steps",
    "mask_ratio",
    "align_weight",
    "fair_weight",
    "confidence_threshold",
    "learning_rate",
    "epochs",
)
# The 14 published rows (salesforce/MUST, train_configs.json).
PUBLISHED = {
    ("imagenet", "b16"): (32, 0.999, 2000, 0.3, 0.2, 1, 0.7, 2e-5, 30),
    ("imagenet", "l14"): (56, 0.999, 2000, 0.3, 0.5, 1, 0.5, 4e-5, 20),
    ("sun397", "b16"): (32, 0.99, 500, 0.1, 1, 0.2, 0.4, 1e-4, 20),
    ("sun397", "l14"): (28, 0.99, 500, 0.2, 0.5, 0.2, 0.3, 2e-4, 20),
    ("food101", "b16"): (32, 0.999, 2000, 0.1, 0.1, 1, 0.7, 2e-5, 40),
    ("food101", "l14"): (56, 0.999, 2000, 0.1, 0.1, 1, 0.7, 4e-5, 40),
    ("gtsrb", "b16"): (32, 0.99, 500, 0.5, 0.5, 1, 0.3, 2e-5, 20),
    ("gtsrb", "l14"): (56, 0.99, 500, 0.3, 0.5, 1, 0.2, 4e-5, 20),
    ("dtd", "b16"): (32, 0.99, 100, 0.1, 0.2, 1, 0.4, 2e-5, 60),
    ("dtd", "l14"): (56, 0.99, 100, 0.1, 0.5, 1, 0.5, 4e-5, 60),
    ("ucf101", "b16"): (16, 0.99, 500, 0.1, 0.5, 1, 0.5, 1e-5, 60),
    ("ucf101", "l14"): (28, 0.99, 500, 0.1, 0.5, 1, 0.6, 2e-5, 60),
    ("pets", "b16"): (32, 0.99, 100, 0.1, 0.2, 1, 0.7, 1e-5, 60),
    ("caltech101", "b16"): (32, 0.99, 100, 0.1, 0.2, 1, 0.7, 1e-5, 60),
}
# Zero-shot and adapted, percent (table 1 of the paper).
ACCURACIES = {
    ("imagenet", "b16"): (68.3, 77.7),
    ("sun397", "b16"): (64.4, 71.8),
    ("food101", "b16"): (88.7, 92.7),
    ("gtsrb", "b16"): (43.4, 65.5),
    ("dtd", "b16"): (44.7, 54.1),
    ("ucf101", "b16"): (68.8, 81.1),
    ("imagenet", "l14"): (75.5, 82.1),
    ("sun397", "l14"): (67.4, 74.6),
    ("food101", "l14"): (92.9, 95.3),
    ("gtsrb", "l14"): (50.6, 68.7),
    ("dtd", "l14"): (55.4, 62.6),
    ("ucf101", "l14"): (77.0, 85.7),
}
PATCH_SIZES = {"b16": 16, "l14": 14, "b32": 32}


def load(dataset):
    spec = importlib.util.spec_from_file_location(dataset, CONFIGS / f"{dataset}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(dataset, model):
    return load(dataset).get_config(model)


@pytest.mark.parametrize(("dataset", "model"), PUBLISHED)
def test_constants_are_the_published_row(dataset, model):
    config = read(dataset, model)
    assert tuple(config[name] for name in COLUMNS) == PUBLISHED[dataset, model]
    assert config.batch_size == 16 * 64
    assert config.image_size == 224
    assert config.min_learning_rate == 1e-6
    assert config.strong_view.flip_probability == 0.5
    expected = (config.expected.zeroshot, config.expected.adapted)
    assert expected == ACCURACIES.get((dataset, model), (0, 0))
    per_class = dataset in ("pets", "caltech101")
    assert config.eval_metric == ("mean_per_class" if per_class else "top1")


@pytest.mark.parametrize("dataset", DATA_SETS)
def test_every_model_of_a_recipe_passes_the_checks(dataset):
    models = load(dataset).MODELS
    assert set(models) == {model for name, model in PUBLISHED if name == dataset} | {"b32"}
    for model in models:
        config = read(dataset, model)
        config_lib.check_config(config)
        config_lib.check_patches(config, patch_size=PATCH_SIZES[model])
        assert config.checkpoint == f"checkpoints/vit_{model}"


@pytest.mark.parametrize("dataset", DATA_SETS)
def test_vit_b32_has_the_recipe_of_vit_b16_and_expects_nothing(dataset):
    fields = dict(config_lib.flat_fields(read(dataset, "b32")))
    others = dict(config_lib.flat_fields(load(dataset).get_config()))
    differ = {name for name in fields if fields[name] != others[name]}
    allowed = {"checkpoint", "mask_patch_size", "expected.zeroshot", "expected.adapted"}
    assert differ <= allowed
    assert fields["expected.zeroshot"] == fields["expected.adapted"] == 0


def test_a_model_that_has_no_recipe_is_refused_with_those_that_have():
    with pytest.raises(UserError, match=r"configs/dtd\.py has no model 'h14'; it has b16, l14, b3"):
        read("dtd", "h14")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A CLIP with ViT-B/16's patches that reads the longest prompts, letter by letter."""
    folder = tmp_path_factory.mktemp("checkpoint") / "clip"
    small = {"depth": 1, "num_heads": 1}
    vision = dataclasses.replace(tiny_run.SPEC.vision, image_size=64, patch_size=16, **small)
    text = dataclasses.replace(tiny_run.SPEC.text, context_length=160, **small)
    spec = dataclasses.replace(tiny_run.SPEC, vision=vision, text=text)
    return tiny_run.write_checkpoint(folder, spec=spec)


@pytest.fixture
def quick_compilation():
    """Compiling takes most of the time, and two steps don't need to be fast."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("dataset", DATA_SETS)
def test_a_few_steps_on_the_data_set_as_it_lies_on_disk(
    dataset, checkpoint, tmp_path, monkeypatch, capsys
):
    """The recipe as it is, but for the checkpoint and the size of images and batches."""
    monkeypatch.chdir(tmp_path)
    config = load(dataset).get_config()
    labels = read_class_names(config.dataset.class_names).folders
    places = np.linspace(0, len(labels) - 1, 16).astype(int)
    benchmark_images.write(
        dataset,
        tmp_path,
        train=[labels[place] for place in places],
        test=[labels[place] for place in places[:9]],
    )
    config.checkpoint = str(checkpoint)
    config.image_size = 64
    config.batch_size = 8
    config.epochs = 1
    config.loader.num_threads = 2

    experiment = build(config)
    for source, expected in [
        (experiment.train_source(experiment.make_mesh()), places),
        (experiment.test_source(), places[:9]),
    ]:
        assert sorted(source.labels[i] for i in range(len(source))) == list(expected)

    result = train(config, str(tmp_path / "run"))
    assert result["steps"] == 2
    assert result["failed_images"] == 0
    metrics = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    losses = [line for line in metrics if "train/loss" in line]
    assert all(np.isfinite(line["train/loss"]) for line in losses)
    assert "train/pseudo_label_accuracy" in losses[-1]
    told = capsys.readouterr().out
    assert f"{len(labels)} classes" in told
    assert ("mean per-class accuracy: student" in told) == (dataset in ("pets", "caltech101"))
    assert 0 <= result["teacher_mean_per_class"] <= 1
