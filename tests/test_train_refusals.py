"""Runs that are refused: bad input is told in one line, and nothing is written."""

import json
import shutil

import pytest
import tiny_run

from must_jax.convert.converted import SPEC_FILE
from must_jax.errors import UserError
from must_jax.score import score
from must_jax.train import train


@pytest.mark.parametrize("kind", ["a file", "below a file"])
def test_a_workdir_that_can_not_be_written_is_refused(inputs, tmp_path, kind):
    (tmp_path / "file").write_text("")
    workdir = tmp_path / "file" if kind == "a file" else tmp_path / "file" / "run"
    with pytest.raises(UserError, match="cannot be written"):
        train(tiny_run.config(inputs), str(workdir))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "relu"}, "relu"),
        ({"patch_size": 0}, "describes no CLIP"),
        ({"patch_size": 5}, "patch size 5"),
        ({"width": 64}, "do not fit clip.json"),
        ({"num_heads": 3}, "describes no CLIP|do not fit"),
    ],
)
def test_a_checkpoint_whose_architecture_is_damaged_is_refused(inputs, tmp_path, change, message):
    shutil.copytree(inputs / "clip", tmp_path / "clip")
    path = tmp_path / "clip" / SPEC_FILE
    record = json.loads(path.read_text())
    record["vision"] |= change
    path.write_text(json.dumps(record))
    config = tiny_run.config(inputs)
    config.checkpoint = str(tmp_path / "clip")
    with pytest.raises(UserError, match=message):
        train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


BAD_INPUTS = {
    "no train folder": ({"dataset.train": "{tmp}/nowhere"}, r"nowhere does not exist"),
    "no images": ({"dataset.train": "{tmp}/empty"}, r"no images in .*empty"),
    "a file for a folder": (
        {"dataset.train": "{inputs}/classes.txt"},
        r"neither a folder nor",
    ),
    "flat test folder": ({"dataset.test": "{inputs}/train"}, r"train"),
    "no class names": ({"dataset.class_names": "{tmp}/nothing.txt"}, r"nothing\.txt"),
    "duplicates": ({"dataset.class_names": "{tmp}/twice.txt"}, r"twice\.txt:3: .*line 1"),
    "template without a slot": ({"dataset.templates": "{tmp}/slotless.txt"}, r"slotless\.txt:2"),
    "no checkpoint": ({"checkpoint": "{tmp}/nowhere"}, r"nowhere"),
    "unknown checkpoint": ({"checkpoint": "{tmp}/empty"}, r"empty.*convert_clip_weights"),
    "image size": ({"image_size": 18, "mask_patch_size": 6}, r"image_size is 18.*patch size 4"),
    "mask size": ({"image_size": 24, "mask_patch_size": 6}, r"mask_patch_size is 6"),
    "mask does not divide": ({"mask_patch_size": 12}, r"mask_patch_size is 12.*divisor"),
    "batch and devices": ({"batch_size": 12}, r"batch_size is 12, which 8 devices don't divide"),
    "nothing decodes": ({"dataset.train": "{tmp}/broken"}, r"none of the 8 images that were tried"),
    "no test image decodes": ({"dataset.test": "{tmp}/badtest"}, r"none of the 1 images"),
    "no tokenizer": ({"checkpoint": "{tmp}/mute"}, r"damaged .tokenizer/merges.txt: is missing"),
    "batch and data": ({"batch_size": 40}, r"batch_size is 40, more than the 36 images"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_one_line_and_writes_nothing(case, inputs, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing.txt").write_text("# only a comment\n")
    (tmp_path / "twice.txt").write_text("star\nmoon\nstar\n")
    (tmp_path / "slotless.txt").write_text("a {}.\na photo.\n")
    (tmp_path / "badtest" / "star").mkdir(parents=True)
    (tmp_path / "badtest" / "star" / "0.png").write_bytes(b"nothing")
    (tmp_path / "broken").mkdir()
    for i in range(16):
        (tmp_path / "broken" / f"{i}.png").write_bytes(b"nothing")
    shutil.copytree(inputs / "clip", tmp_path / "mute")
    shutil.rmtree(tmp_path / "mute" / "tokenizer")
    overrides, message = BAD_INPUTS[case]
    config = tiny_run.config(inputs)
    for name, value in overrides.items():
        if isinstance(value, str):
            value = value.format(tmp=tmp_path, inputs=inputs)
        config.update_from_flattened_dict({name: value})
    with pytest.raises(UserError, match=message) as refusal:
        train(config, str(tmp_path / "run"))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_eval_of_an_empty_workdir_is_refused_and_writes_nothing(inputs, tmp_path):
    with pytest.raises(UserError, match="no complete checkpoint"):
        score(tiny_run.config(inputs), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
