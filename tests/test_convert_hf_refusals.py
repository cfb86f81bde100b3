"""Hugging Face CLIP folders that are damaged or no CLIP: one line, and nothing is left behind."""

import json

import pytest
import torch
from clip_checkpoints import (
    TINY,
    edit_json,
    edit_weights,
    make_clip,
    remove,
    replace,
    save_clip,
    write_config,
    write_tokenizer,
)

from must_jax.convert import convert
from must_jax.convert.conversion import read_checkpoint
from must_jax.convert.hugging_face import read_spec
from must_jax.errors import UserError


@pytest.fixture(scope="module")
def clip():
    return make_clip(**TINY)


@pytest.fixture
def source(clip, tmp_path):
    return save_clip(clip, tmp_path / "source")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name(value, source):
    name = "text_model.encoder.layers.1.self_attn.k_proj.weight"
    edit_weights(source, lambda w: w[name].view(-1)[7].fill_(value))
    with pytest.raises(UserError, match=f"{name} holds numbers that are not finite"):
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


@pytest.mark.parametrize(
    "field", [{"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1.0}]
)
def test_other_pixels_are_refused(tmp_path, field):
    write_config(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(field))
    with pytest.raises(UserError, match=rf"{next(iter(field))} is .*, supported is"):
        read_spec(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"vision_config": {"hidden_size": 10**400}}, "hidden_size is 1000"),
        ({"vision_config": {"layer_norm_eps": 10**400}}, "layer_norm_eps is 1000"),
        ({"vision_config": {"hidden_act": "gelu_new"}}, "'gelu_new' is not supported"),
        ({"text_config": {"hidden_act": "tanh"}}, "text_config: hidden_act 'tanh'"),
        ({"vision_config": {"image_size": [224, 192]}}, "only square"),
        ({"vision_config": {"image_size": 225}}, "225 is not a multiple of patch_size 32"),
        ({"vision_config": {"patch_size": "32"}}, "patch_size is '32'"),
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
        read_spec(tmp_path)
    assert message in str(error.value)
    assert str(tmp_path / "config.json") in str(error.value)


@pytest.mark.parametrize("model_type", ["vit", None, ["clip"]])
def test_other_models_are_refused_by_their_type(model_type, source):
    edit_json(source / "config.json", lambda config: config.update(model_type=model_type))
    with pytest.raises(UserError) as error:
        read_checkpoint(source, activation=None)
    assert f"config.json: model_type is {model_type!r}; only 'clip'" in str(error.value)


@pytest.mark.parametrize(
    "statistics", [{"image_mean": [1, 2]}, {"image_std": "a"}, {"image_std": [0.5, 0, 1]}]
)
def test_odd_statistics_are_refused(statistics, tmp_path):
    write_config(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(statistics))
    with pytest.raises(UserError, match="preprocessor_config"):
        read_spec(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("config.json"), "unknown layout"),
        (replace("config.json", b"{"), "config.json: not JSON"),
        (replace("config.json", b"[1]"), "expected a JSON object"),
        (replace("config.json", b"\xff"), "config.json: not JSON"),
        (
            replace("preprocessor_config.json", b'{"image_std": [0.5, 1e-320, 0.5]}'),
            "image std is 1e-320, expected a number from 0.0001 to 10000",
        ),
        (
            lambda s: edit_json(
                s / "config.json", lambda c: c["text_config"].update(layer_norm_eps=99)
            ),
            "layer norm's epsilon is 99.0",
        ),
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


def test_a_token_that_the_text_tower_has_no_row_for(source, tmp_path):
    edit_json(source / "vocab.json", lambda ids: ids.update({"a</w>": 5000}))
    with pytest.raises(UserError, match="token of number 5000, and the checkpoint knows 99"):
        convert(source, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_depth_that_no_file_holds_costs_nothing(source):
    edit_json(
        source / "config.json",
        lambda config: config["text_config"].update(num_hidden_layers=10**9),
    )
    with pytest.raises(UserError, match="1000000000 blocks of the text tower") as error:
        read_checkpoint(source, activation=None)
    assert len(str(error.value)) < 1000


def test_a_number_beyond_float32_is_refused(source):
    def edit(tensors):
        tensors["visual_projection.weight"] = tensors["visual_projection.weight"].double() * 1e300

    edit_weights(source, edit)
    with pytest.raises(UserError, match=r"visual_projection\.weight holds numbers that are not"):
        read_checkpoint(source, activation=None)


def test_a_name_too_long_for_the_file_system(source, tmp_path):
    long = tmp_path / ("x" * 300)
    for arguments in ((long, tmp_path / "target"), (source, long)):
        with pytest.raises(UserError, match="no usable path"):
            convert(*arguments)
