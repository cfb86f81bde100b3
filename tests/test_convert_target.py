"""The converted checkpoint: written whole or not at all, and refused on loading if damaged."""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
from clip_checkpoints import (
    TINY,
    assert_same_trees,
    edit_json,
    edit_weights,
    make_clip,
    replace,
    save_clip,
)

from must_jax.convert import conversion, convert, load_converted
from must_jax.convert.conversion import read_checkpoint
from must_jax.errors import UserError

PROGRAM = pathlib.Path(__file__).parents[1] / "tools" / "convert_clip_weights.py"


def name_file(name):
    """Has clip.json name one more file."""
    return lambda target: edit_json(
        target / "clip.json", lambda record: record["sha256"].update({name: "0" * 64})
    )


@pytest.fixture(scope="module")
def clip():
    return make_clip(**TINY)


@pytest.fixture
def source(clip, tmp_path):
    return save_clip(clip, tmp_path / "source")


def test_target_holds_what_was_read(source, tmp_path):
    summary = convert(source, tmp_path / "target")
    spec, params = load_converted(tmp_path / "target")
    expected_spec, _, expected = read_checkpoint(source, activation=None)
    assert spec == expected_spec == summary.spec
    assert_same_trees(params, expected)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(params))
    record = json.loads((tmp_path / "target" / "clip.json").read_text())
    assert (record["format"], record["source"]) == (1, "source")
    assert {p.name for p in (tmp_path / "target").iterdir()} == {"clip.json", "params", "tokenizer"}
    vocabulary = (tmp_path / "target" / "tokenizer" / "vocab.json").read_text()
    assert vocabulary == (source / "vocab.json").read_text()
    assert summary.num_parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert f"{summary.num_parameters:,} parameters" in str(summary)


def test_a_converted_checkpoint_is_no_source(source, tmp_path):
    convert(source, tmp_path / "target")
    with pytest.raises(UserError, match="converted checkpoint already"):
        convert(tmp_path / "target", tmp_path / "again")


def test_missing_source(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        convert(tmp_path / "nowhere", tmp_path / "target")


def test_an_existing_target_is_replaced_only_on_request(source, tmp_path):
    target = tmp_path / "target"
    convert(source, target)
    edit_weights(source, lambda w: w.update({"text_projection.weight": torch.ones(48, 64)}))
    with pytest.raises(UserError, match=r"exists already.*--overwrite"):
        convert(source, target)
    assert load_converted(target)[1]["text"]["proj"][0, 0] != 1
    convert(source, target, overwrite=True)
    assert load_converted(target)[1]["text"]["proj"][0, 0] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source", "target"]


@pytest.mark.parametrize("kind", ["file", "folder", "source"])
def test_only_a_converted_checkpoint_is_overwritten(kind, source, tmp_path):
    target = source if kind == "source" else tmp_path / "target"
    if kind == "file":
        target.write_text("mine")
    elif kind == "folder":
        target.mkdir()
    with pytest.raises(UserError, match="will not be overwritten"):
        convert(source, target, overwrite=True)
    assert (source / "model.safetensors").exists()
    assert target.exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt])
@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_half_way_leaves_no_half(error, existing, source, tmp_path, monkeypatch):
    target = tmp_path / "target"
    if existing:
        convert(source, target)
    before = sorted(p.name for p in tmp_path.iterdir())

    def fails(folder, **_):
        (folder / "params").mkdir()
        (folder / "params" / "half").write_text("x")
        raise error

    monkeypatch.setattr(conversion, "write_converted", fails)
    expected = KeyboardInterrupt if error is KeyboardInterrupt else UserError
    with pytest.raises(expected):
        convert(source, target, overwrite=existing)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    if existing:
        load_converted(target)


def test_parent_that_is_a_file(source, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        convert(source, tmp_path / "file" / "target")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: (t / "clip.json").unlink(), "tools/convert_clip_weights.py"),
        (replace("clip.json", b"{"), "damaged"),
        (replace("clip.json", b"[]"), "damaged"),
        (replace("clip.json", b"[" * 100_000), "damaged"),
        (replace("tokenizer/merges.txt", b""), "damaged (tokenizer/merges.txt: was changed)"),
        (replace("clip.json", b'{"format": 1}'), "damaged"),
        (replace("clip.json", b'{"format": 9}'), "format 9 is not 1"),
        (lambda t: os.rename(t / "params", t / "moved"), ": is missing)"),
        (lambda t: os.rename(t / "params/state", t / "params/moved"), "damaged (params/moved/"),
        (lambda t: (t / "params/state/_METADATA").unlink(), "(params/state/_METADATA: is missing)"),
        (lambda t: (t / "params/x").write_text(""), "damaged (params/x: was added)"),
        (lambda t: os.truncate(t / "params/state/_METADATA", 2**40), " bytes, for "),
        (
            lambda t: edit_json(t / "clip.json", lambda r: r.pop("sha256")),
            "clip.json: tells no digests",
        ),
        (name_file("../clip.json"), "damaged (../clip.json: is missing)"),
        (name_file("/dev/zero"), "damaged (/dev/zero: is missing)"),
    ],
)
def test_damaged_targets_are_refused_on_loading(damage, message, source, tmp_path):
    convert(source, tmp_path / "target")
    damage(tmp_path / "target")
    with pytest.raises(UserError) as error:
        load_converted(tmp_path / "target")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logit_scale", "100"),
        ("logit_scale", None),
        ("image_mean", ["a", 0.5, 0.5]),
        ("image_std", [0.5, 0.5]),
        ("image_std", [0.5, 0.0, 0.5]),
        ("image_std", [0.5, 1e-320, 0.5]),
        ("image_mean", [0.5, 1e308, 0.5]),
        ("logit_scale", float("nan")),
        ("logit_scale", 1e30),
        ("logit_bias", float("inf")),
        ("layer_norm_eps", float("nan")),
        ("layer_norm_eps", -1.0),
        ("layer_norm_eps", True),
        ("layer_norm_eps", 1e38),
    ],
)
def test_statistics_that_are_no_numbers_are_refused_on_loading(name, value, source, tmp_path):
    convert(source, tmp_path / "target")

    def edit(record):
        (record["text"] if name == "layer_norm_eps" else record)[name] = value

    edit_json(tmp_path / "target" / "clip.json", edit)
    with pytest.raises(UserError, match=r"clip\.json: describes no CLIP"):
        load_converted(tmp_path / "target")


def test_a_bit_of_a_weight_is_told(source, tmp_path):
    convert(source, tmp_path / "target")
    files = [path for path in (tmp_path / "target" / "params").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(UserError, match=r"target: damaged \(params/.*was changed\)"):
        load_converted(tmp_path / "target")


@pytest.mark.parametrize(
    "name", ["params", "params/state/d", "params/state/_METADATA", "tokenizer"]
)
def test_links_are_not_followed(name, source, tmp_path):
    """They would read what the checkpoint's maker can't: its contents would go into the model."""
    target = tmp_path / "target"
    convert(source, target)
    shutil.move(target / name, tmp_path / "elsewhere")
    (target / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=rf"{name}: is a link; copy the files themselves$"):
        load_converted(target)


def test_loading_what_is_no_checkpoint(source, tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        load_converted(tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"convert_clip_weights.py {source}"):
        load_converted(source)
    with pytest.raises(UserError, match="no usable path"):
        load_converted("x" * 5000)


def run_program(*arguments, cwd):
    """Runs the program as a user does, in a Python that has no torch."""
    code = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_program(source, tmp_path):
    done = run_program(source.name, "target", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Hugging Face CLIPModel: ViT 3x128 patch 8 image 32")
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
    load_converted(tmp_path / "target")
    again = run_program(source.name, "target", cwd=tmp_path)
    assert again.returncode == 2
    assert again.stderr.startswith("error: ")
    assert again.stderr.count("\n") == 1


@pytest.fixture
def program():
    module_spec = importlib.util.spec_from_file_location("convert_clip_weights", PROGRAM)
    program = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(program)
    return program


def test_program_tells_that_memory_is_short(program, source, tmp_path, monkeypatch, capsys):
    def fails(*_, **__):
        raise MemoryError

    monkeypatch.setattr(conversion, "read_params", fails)
    monkeypatch.setattr(sys, "argv", ["x", str(source), str(tmp_path / "target")])
    assert program.main() == 2
    assert capsys.readouterr().err == f"error: {source}: there is not enough memory for it\n"
    assert not (tmp_path / "target").exists()


def test_program_passes_its_options_on(program, monkeypatch, capsys):
    called = {}

    def fake(source, target, **options):
        called.update(options, source=source, target=target)
        return "done"

    monkeypatch.setattr(program, "convert", fake)
    arguments = ["x", "a.pt", "b", "--tokenizer", "t", "--activation", "gelu", "--overwrite"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert program.main() == 0
    assert called == {
        "source": "a.pt",
        "target": "b",
        "tokenizer": "t",
        "activation": "gelu",
        "overwrite": True,
    }
    assert capsys.readouterr().out == "done -> b\n"
