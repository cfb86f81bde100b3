"""Hugging Face folders: reading, refusing, and writing the target whole or not at all."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
from clip_checkpoints import TINY, make_clip, save_clip, write_tokenizer
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from must_jax.convert import conversion, convert, load_converted
from must_jax.convert.architecture import OPENAI_MEAN, OPENAI_STD, hugging_face_spec
from must_jax.convert.conversion import read_checkpoint
from must_jax.errors import UserError
from must_jax.models import TextTransformer, VisionTransformer

PROGRAM = pathlib.Path(__file__).parents[1] / "tools" / "convert_clip_weights.py"


@pytest.fixture(scope="module")
def clip():
    return make_clip(**TINY)


@pytest.fixture
def source(clip, tmp_path):
    return save_clip(clip, tmp_path / "source")


def edit_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def assert_same_trees(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


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


def test_every_parameter_of_the_source_is_used_once(clip, source):
    _, _, params = read_checkpoint(source, activation=None)
    expected = sum(p.numel() for name, p in clip.named_parameters() if name != "logit_scale")
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected
    # Random values differ, so that sorted equality leaves no room for one used twice.
    ours = np.sort(np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params)]))
    theirs = torch.cat([p.ravel() for n, p in clip.named_parameters() if n != "logit_scale"])
    np.testing.assert_array_equal(ours, theirs.detach().sort().values.numpy())


def test_parameters_have_the_shapes_that_the_towers_make(source):
    spec, _, params = read_checkpoint(source, activation=None)
    key = jax.random.key(0)
    images, ids = np.zeros((1, 32, 32, 3), np.float32), np.zeros((1, 16), np.int32)
    vision = VisionTransformer(spec.vision, spec.embed_dim)
    text = TextTransformer(spec.text, spec.embed_dim)
    made = {
        "vision": jax.eval_shape(vision.init, key, images)["params"],
        "text": jax.eval_shape(text.init, key, ids)["params"],
    }
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, made)


@pytest.mark.parametrize("kind", ["sharded", "float16", "bfloat16", "torch"])
def test_other_files_give_the_same_parameters(kind, clip, source, tmp_path):
    other = tmp_path / kind
    if kind == "sharded":
        save_clip(clip, other, max_shard_size="500KB")
        assert len(list(other.glob("model-*.safetensors"))) > 2
    elif kind == "torch":
        save_clip(clip, other)
        torch.save(load_file(other / "model.safetensors"), other / "pytorch_model.bin")
        (other / "model.safetensors").unlink()
    else:
        dtype = getattr(torch, kind)
        rounded = make_clip(**TINY).to(dtype)
        save_clip(rounded, other)
        save_clip(rounded.float(), source)
    spec, _, params = read_checkpoint(other, activation=None)
    expected_spec, _, expected = read_checkpoint(source, activation=None)
    assert spec == expected_spec
    assert_same_trees(params, expected)


def test_position_ids_of_old_files_are_passed_over(source):
    def add(weights):
        weights["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
        weights["text_model.embeddings.position_ids"] = torch.arange(16)[None]

    edit_weights(source, add)
    read_checkpoint(source, activation=None)


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (lambda w: w.pop("visual_projection.weight"), ["missing: visual_projection.weight"]),
        (lambda w: w.pop("logit_scale"), ["missing: logit_scale"]),
        (
            lambda w: [w.pop(f"text_model.final_layer_norm.{x}") for x in ("bias", "weight")],
            ["missing: text_model.final_layer_norm.bias, text_model.final_layer_norm.weight"],
        ),
        (
            lambda w: w.update({
                "vision_model.encoder.layers.3.layer_norm1.bias": torch.zeros(128),
                "text_projection.bias": torch.zeros(3),
            }),
            ["left over: text_projection.bias, vision_model.encoder.layers.3.layer_norm1.bias"],
        ),
        (
            lambda w: w.update({
                "vision_model.encoder.layers.1.self_attn.k_proj.weight": torch.zeros(128, 64),
                "text_model.embeddings.token_embedding.weight": torch.zeros(98, 64),
            }),
            [
                "vision_model.encoder.layers.1.self_attn.k_proj.weight is (128, 64), expected "
                "(128, 128)",
                "text_model.embeddings.token_embedding.weight is (98, 64), expected (99, 64)",
            ],
        ),
        (
            lambda w: w.update(
                {"text_projection.weight": torch.zeros(1), "new": w.pop("visual_projection.weight")}
            ),
            [
                "missing: visual_projection.weight",
                "left over: new",
                "wrong shape: text_projection.weight is (1,), expected (48, 64)",
            ],
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_listed(change, messages, source):
    edit_weights(source, change)
    with pytest.raises(UserError) as error:
        read_checkpoint(source, activation=None)
    for message in [*messages, str(source), "Hugging Face CLIPModel"]:
        assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parity
def test_defaults_are_those_of_transformers(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    spec = hugging_face_spec(tmp_path, logit_scale=1.0)
    config = CLIPConfig()
    for ours, theirs in [(spec.vision, config.vision_config), (spec.text, config.text_config)]:
        assert ours.width == theirs.hidden_size
        assert ours.depth == theirs.num_hidden_layers
        assert ours.num_heads == theirs.num_attention_heads
        assert ours.mlp_dim == theirs.intermediate_size
        assert ours.activation == theirs.hidden_act
        assert ours.layer_norm_eps == theirs.layer_norm_eps
    assert spec.vision.image_size == config.vision_config.image_size
    assert spec.vision.patch_size == config.vision_config.patch_size
    assert spec.text.vocab_size == config.text_config.vocab_size
    assert spec.text.context_length == config.text_config.max_position_embeddings
    assert spec.text.eot_token_id == config.text_config.eos_token_id
    assert spec.embed_dim == config.projection_dim
    assert (spec.image_mean, spec.image_std) == (OPENAI_MEAN, OPENAI_STD)


@pytest.mark.parity
def test_openais_statistics_are_those_of_transformers():
    assert list(OPENAI_MEAN) == list(OPENAI_CLIP_MEAN)
    assert list(OPENAI_STD) == list(OPENAI_CLIP_STD)


def write_config(folder, **config):
    (folder / "config.json").write_text(json.dumps({"model_type": "clip"} | config))


def test_statistics_and_old_fields_are_read(tmp_path):
    write_config(
        tmp_path,
        vision_config={"hidden_size": 64, "num_attention_heads": 4, "image_size": [64, 64]},
        vision_config_dict={"hidden_size": 128},
        text_config=None,
        text_config_dict={"eos_token_id": 2},
        projection_dim=7,
    )
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(statistics))
    spec = hugging_face_spec(tmp_path, logit_scale=12.0)
    assert (spec.vision.width, spec.vision.image_size) == (128, 64)
    assert spec.text.eot_token_id is None
    assert (spec.embed_dim, spec.logit_scale) == (7, 12.0)
    assert (spec.image_mean, spec.image_std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "siglip"}, "'siglip'"),
        ({"model_type": None}, "None"),
        ({"vision_config": {"hidden_act": "gelu_new"}}, "'gelu_new' is not supported"),
        ({"text_config": {"hidden_act": "tanh"}}, "text_config: hidden_act 'tanh'"),
        ({"vision_config": {"image_size": [224, 192]}}, "only square"),
        ({"vision_config": {"image_size": 225}}, "225 is not a multiple of patch_size 32"),
        ({"vision_config": {"patch_size": "32"}}, "patch_size is 32"),
        ({"vision_config": {"num_channels": 1}}, "num_channels is 1"),
        ({"vision_config": {"num_attention_heads": 7}}, "not a multiple"),
        ({"vision_config": {"num_hidden_layers": 0}}, "num_hidden_layers is 0"),
        ({"vision_config": [1]}, "vision_config is no object"),
        ({"text_config": {"eos_token_id": [1, 2]}}, "eos_token_id"),
        ({"text_config": {"vocab_size": None, "max_position_embeddings": "a"}}, "max_position"),
        ({"projection_dim": "a"}, "projection_dim"),
        ({"vision_config": {"layer_norm_eps": "a"}}, "layer_norm_eps"),
    ],
)
def test_configurations_that_are_no_clip_are_refused(config, message, tmp_path):
    write_config(tmp_path, **config)
    with pytest.raises(UserError) as error:
        hugging_face_spec(tmp_path, logit_scale=1.0)
    assert message in str(error.value)
    assert str(tmp_path / "config.json") in str(error.value)


@pytest.mark.parametrize(
    "statistics", [{"image_mean": [1, 2]}, {"image_std": "a"}, {"image_std": [0.5, 0, 1]}]
)
def test_odd_statistics_are_refused(statistics, tmp_path):
    write_config(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(statistics))
    with pytest.raises(UserError, match="preprocessor_config"):
        hugging_face_spec(tmp_path, logit_scale=1.0)


def remove(name):
    return lambda source: (source / name).unlink()


def replace(name, content):
    return lambda source: (source / name).write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("config.json"), "unknown layout"),
        (replace("config.json", b"{"), "config.json: not JSON"),
        (replace("config.json", b"[1]"), "expected a JSON object"),
        (replace("config.json", b"\xff"), "config.json: not JSON"),
        (remove("model.safetensors"), "no weights"),
        (replace("model.safetensors", b""), "not a readable safetensors file"),
        (replace("model.safetensors", b"x" * 100), "not a readable safetensors file"),
        (remove("vocab.json"), "no tokenizer"),
        (replace("vocab.json", b"{"), "tokenizer cannot be loaded"),
        (lambda source: write_tokenizer(source, 120), "120 tokens"),
    ],
)
def test_damaged_folders_are_told_in_one_line_and_leave_nothing(damage, message, source, tmp_path):
    damage(source)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError) as error:
        convert(source, tmp_path / "target")
    assert message in str(error.value)
    assert str(error.value).startswith(str(source))
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index["weight_map"].update(a="../model.safetensors"), "outside the folder"),
        (lambda index: index["weight_map"].update(a="none.safetensors"), "none.safetensors"),
        (lambda index: index.pop("weight_map"), "no weight_map"),
        (
            lambda index: index["weight_map"].update(extra=sorted(index["weight_map"].values())[0]),
            "lacks extra",
        ),
    ],
)
def test_damaged_shards_are_refused(change, message, clip, tmp_path):
    source = save_clip(clip, tmp_path / "source", max_shard_size="500KB")
    edit_json(source / "model.safetensors.index.json", change)
    with pytest.raises(UserError, match=message):
        read_checkpoint(source, activation=None)


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
        (replace("clip.json", b'{"format": 1}'), "damaged"),
        (replace("clip.json", b'{"format": 9}'), "format 9 is not 1"),
        (lambda t: os.rename(t / "params", t / "moved"), "params: damaged"),
        (lambda t: (t / "params" / "state" / "_METADATA").unlink(), "params: damaged"),
    ],
)
def test_damaged_targets_are_refused_on_loading(damage, message, source, tmp_path):
    convert(source, tmp_path / "target")
    damage(tmp_path / "target")
    with pytest.raises(UserError) as error:
        load_converted(tmp_path / "target")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_loading_what_is_no_checkpoint(source, tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        load_converted(tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"convert_clip_weights.py {source}"):
        load_converted(source)


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


def test_program_passes_its_options_on(source, tmp_path, monkeypatch, capsys):
    module_spec = importlib.util.spec_from_file_location("convert_clip_weights", PROGRAM)
    program = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(program)
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
