"""What may have changed when a run goes on, and what is told or refused."""

import dataclasses
import json
import shutil

import image_kinds
import numpy as np
import pytest
import tiny_run

from must_jax.checkpoint import COMPLETE, told_beside
from must_jax.config import default_config, flat_fields
from must_jax.data.sources import Classes, open_source
from must_jax.data.sources.example_images import ExampleImages
from must_jax.errors import UserError
from must_jax.experiment import build
from must_jax.resume import CONFIG_FILE, FREE, FREE_SECTIONS, read_state
from must_jax.source_digest import labels_digest, names_digest
from must_jax.train import train


def as_by_an_earlier_version(workdir):
    """Leaves in the checkpoints' notes what they had before they told the config."""
    for file in workdir.glob(f"checkpoints/*/{COMPLETE}"):
        record = json.loads(file.read_text())
        told = record["custom_metadata"]
        notes = told["notes"]
        del notes["config"]
        kept = ("number of images", "class names (SHA-256)")
        notes["facts"] = {name: notes["facts"][name] for name in kept}
        record["custom_metadata"] = told_beside(notes, told["shapes"])
        file.write_text(json.dumps(record))


def refusal(config, workdir):
    """The line that a run is refused with, which writes nothing."""
    before = (workdir / CONFIG_FILE).read_bytes() if (workdir / CONFIG_FILE).exists() else None
    with pytest.raises(UserError) as refused:
        train(config, str(workdir))
    after = (workdir / CONFIG_FILE).read_bytes() if (workdir / CONFIG_FILE).exists() else None
    assert after == before
    return str(refused.value)


def test_free_fields_are_fields():
    fields = [name for name, _ in flat_fields(default_config())]
    assert set(fields) >= FREE
    assert all(any(name.startswith(section) for name in fields) for section in FREE_SECTIONS)


def test_changed_fields_are_told_on_resuming(inputs, workdir, capsys):
    config = tiny_run.config(inputs, log_every_steps=1, **{"loader.prefetch": 2})
    train(config, str(workdir))
    told = capsys.readouterr().out.splitlines()
    assert "config.log_every_steps: 2 -> 1" in told
    assert "config.loader.prefetch: 4 -> 2" in told
    assert [line for line in told if line.startswith("config.")] == told[1:3]


def test_a_run_goes_on_where_all_that_it_reads_has_moved(inputs, finished, workdir, capsys):
    moved = workdir.parent / "moved"
    shutil.copytree(inputs, moved)
    # The same weights, whose files have other names each time.
    shutil.rmtree(moved / "clip")
    tiny_run.write_checkpoint(moved / "clip")
    train(tiny_run.config(moved), str(workdir))
    told = capsys.readouterr().out
    for field, name in (("checkpoint", "clip"), ("dataset.train", "train")):
        assert f"config.{field}: '{inputs / name}' -> '{moved / name}'" in told
    digests = [json.loads((path / "result.json").read_text()) for path in (finished, workdir)]
    assert digests[0]["optimizer_digest"] == digests[1]["optimizer_digest"]


CHANGES = {
    "batch_size": ({"batch_size": 16}, "config.batch_size: 8 -> 16"),
    "seed": ({"seed": 1}, "config.seed: 0 -> 1"),
    "epochs": ({"epochs": 1}, "config.epochs: 2 -> 1"),
    "image_field": ({"dataset.image_field": "png"}, "config.dataset.image_field: '' -> 'png'"),
    "crop": ({"strong_view.crop_area": (0.5, 1.0)}, "crop_area: [0.3, 1.0] -> [0.5, 1.0]"),
    "fewer images": ({"dataset.train": "{tmp}/fewer"}, "the number of images: 36 -> 30: "),
    "other images": (
        {"dataset.train": "{tmp}/others"},
        "the training images are others than those the run began with: '{tmp}/others': ",
    ),
    "order of classes": (
        {"dataset.class_names": "{tmp}/order.txt"},
        "the class names are others than those the run began with: '{tmp}/order.txt': ",
    ),
    "templates": (
        {"dataset.templates": "{tmp}/templates.txt"},
        "the templates are others than those the run began with: '{tmp}/templates.txt': ",
    ),
    "descriptions": (
        {"dataset.descriptions": "{tmp}/descriptions.json"},
        "the descriptions are others than those",
    ),
    "mean of the checkpoint": (
        {"checkpoint": "{tmp}/mean"},
        "the checkpoint's image_mean: [0.5, 0.4, 0.3] -> [0.1, 0.2, 0.3]; "
        "the checkpoint's vision.activation: quick_gelu -> gelu: ",
    ),
    "weights": (
        {"checkpoint": "{tmp}/weights"},
        "the checkpoint's weights are others than those the run began with: '{tmp}/weights': ",
    ),
    "several": (
        {"seed": 1, "dataset.templates": "{tmp}/templates.txt"},
        "the run began with: '{tmp}/templates.txt'; config.seed: 0 -> 1: {tmp}/run would go on",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_going_on_as_another_run_is_refused(inputs, workdir, tmp_path, case, monkeypatch):
    tiny_run.write_images(tmp_path / "fewer", count=30, seed=0)
    shutil.copytree(inputs / "train", tmp_path / "others")
    (tmp_path / "others" / "007.png").rename(tmp_path / "others" / "007b.png")
    (tmp_path / "order.txt").write_text("square\ncircle\nstar\n")
    (tmp_path / "templates.txt").write_text("a {}.\none {}.\n")
    sentences = {name: [f"a {name} is a shape."] for name in tiny_run.CLASSES}
    (tmp_path / "descriptions.json").write_text(json.dumps(sentences))
    if case == "mean of the checkpoint":
        vision = dataclasses.replace(tiny_run.SPEC.vision, activation="gelu")
        spec = dataclasses.replace(tiny_run.SPEC, image_mean=(0.1, 0.2, 0.3), vision=vision)
        tiny_run.write_checkpoint(tmp_path / "mean", spec=spec)
    if case == "weights":
        write = tiny_run.write_converted

        def write_another(folder, *, params, **keywords):
            params["vision"]["ln_post"]["bias"] = (
                np.float32(0.5) + params["vision"]["ln_post"]["bias"]
            )
            write(folder, params=params, **keywords)

        monkeypatch.setattr(tiny_run, "write_converted", write_another)
        tiny_run.write_checkpoint(tmp_path / "weights")
    changes, message = CHANGES[case]
    changes = {
        name: value.format(tmp=tmp_path) if isinstance(value, str) else value
        for name, value in changes.items()
    }
    told = refusal(tiny_run.config(inputs, **changes), workdir)
    assert message.format(tmp=tmp_path) in told
    assert f"{workdir} would go on as another run" in told


@pytest.mark.parametrize("content", [None, "{", '{"image_sizes": 3}', '{"seed": 1}'])
def test_what_became_of_config_json_does_not_matter(inputs, workdir, capsys, content):
    """The checkpoint's own notes, which have a digest, tell what the run was."""
    (workdir / CONFIG_FILE).unlink()
    if content is not None:
        (workdir / CONFIG_FILE).write_text(content)
    told = refusal(tiny_run.config(inputs, seed=1, learning_rate=0.5), workdir)
    assert told.startswith("config.learning_rate: 0.001 -> 0.5; config.seed: 0 -> 1: ")
    train(tiny_run.config(inputs), str(workdir))
    assert "not compared" not in capsys.readouterr().out


@pytest.mark.parametrize("change", ["names", "statistics"])
def test_a_checkpoint_is_not_read_as_that_of_other_classes(inputs, workdir, tmp_path, change):
    """As many of them: the shapes tell nothing, and predictions would have the wrong names."""
    config = tiny_run.config(inputs)
    if change == "names":
        config.dataset.class_names = str(tmp_path / "sorted.txt")
        (tmp_path / "sorted.txt").write_text("\n".join(reversed(tiny_run.CLASSES)))
        told = f"the class names are others than those the run began with: '{tmp_path}/sorted.txt'"
    else:
        config.checkpoint = str(tmp_path / "clip")
        other = dataclasses.replace(tiny_run.SPEC, image_mean=(0.1, 0.2, 0.3))
        tiny_run.write_checkpoint(tmp_path / "clip", spec=other)
        told = "the checkpoint's image_mean: [0.5, 0.4, 0.3] -> [0.1, 0.2, 0.3]"
    experiment = build(config)
    with pytest.raises(UserError) as refused:
        read_state(experiment, str(workdir), mesh=experiment.make_mesh())
    assert str(refused.value) == f"{told}: {workdir} is of another model; change it back"


def test_a_checkpoint_of_an_earlier_version_is_compared_with_config_json(
    inputs, workdir, capsys, tmp_path
):
    as_by_an_earlier_version(workdir)
    saved = json.loads((workdir / CONFIG_FILE).read_text())
    del saved["probe_images"]  # this version's alone
    (workdir / CONFIG_FILE).write_text(json.dumps(saved | {"image_sizes": 3}))
    assert "config.seed: 0 -> 1: " in refusal(tiny_run.config(inputs, seed=1), workdir)
    tiny_run.write_images(tmp_path / "fewer", count=30, seed=0)
    fewer = tiny_run.config(inputs, **{"dataset.train": str(tmp_path / "fewer")})
    assert "the number of images: 36 -> 30: " in refusal(fewer, workdir)
    capsys.readouterr()
    train(tiny_run.config(inputs), str(workdir))
    told = capsys.readouterr().out
    assert "config.image_sizes of the run so far is unknown to this version, and not" in told
    assert not [line for line in told.splitlines() if "->" in line and line.startswith("config.")]


def test_a_checkpoint_of_an_earlier_version_whose_config_json_is_lost_goes_on(
    inputs, workdir, capsys
):
    as_by_an_earlier_version(workdir)
    (workdir / CONFIG_FILE).write_text("{")
    train(tiny_run.config(inputs, learning_rate=0.5), str(workdir))
    told = capsys.readouterr().out
    assert f"not compared with the fields of the run so far: {workdir / CONFIG_FILE} cannot" in told


@pytest.mark.parametrize("kind", image_kinds.KINDS)
def test_images_are_known_again_wherever_they_lie(tmp_path, kind):
    images = [(b"image %d" % i, None) for i in range(7)]

    def digest(folder, images):
        return names_digest(open_source(**image_kinds.write(kind, folder, images, names=["a"])))

    first = digest(tmp_path / "a" / "images", images)
    assert digest(tmp_path / "b" / "elsewhere", images) == first
    assert digest(tmp_path / "c", images[:5]) != first


def test_a_list_in_another_order_is_another(tmp_path):
    def digest(*paths):
        (tmp_path / "list.csv").write_text("\n".join(["path", *paths]))
        return names_digest(open_source(tmp_path / "list.csv"))

    assert digest("a.png", "b.png") == digest("a.png", "b.png")
    assert digest("a.png", "b.png") != digest("b.png", "a.png")
    assert digest("a.png", "b.png") != digest("a.pngb.png")
    assert digest("/x/a.png") != digest("/y/a.png")


class Shards(ExampleImages):
    """Names of records in shards of some sizes; counts how many are asked for."""

    def __init__(self, sizes):
        self.path = "/data/x-*.array_record"
        self._names = [f"/data/x-{i}.array_record[{k}]" for i, n in sizes for k in range(n)]
        self.asked = 0

    def __len__(self):
        return len(self._names)

    def name_of(self, record):
        self.asked += 1
        return self._names[record]

    def _serialized(self, record):
        raise NotImplementedError


def test_shards_are_known_by_their_names_and_numbers_of_records():
    shards = Shards([(0, 50_000), (1, 40_000), (2, 1)])
    first = names_digest(shards)
    assert shards.asked < 200  # and not each of the records
    assert names_digest(Shards([(0, 50_000), (1, 40_000), (2, 1)])) == first
    assert names_digest(Shards([(0, 40_000), (1, 50_000), (2, 1)])) != first
    assert names_digest(Shards([(0, 50_000), (1, 40_000), (3, 1)])) != first
    assert names_digest(Shards([(1, 40_000), (0, 50_000), (2, 1)])) != first


def test_labels_tell_one_list_from_another(tmp_path):
    def digest(labels):
        lines = [f"{i}.png,{label}" for i, label in enumerate(labels)]
        (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines]))
        return labels_digest(open_source(tmp_path / "list.csv", classes=Classes(tiny_run.CLASSES)))

    assert digest(["star", "circle"]) == digest(["2", "0"]) != digest(["circle", "star"])
    (tmp_path / "list.csv").write_text("path\n0.png")
    assert labels_digest(open_source(tmp_path / "list.csv")) is None
