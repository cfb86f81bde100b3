"""OpenCLIP folders: what is read, and what is refused by name."""

import json

import jax
import numpy as np
import pytest
import torch
from clip_checkpoints import (
    TINY,
    edit_json,
    make_clip,
    remove,
    replace,
    save_clip,
    write_tokenizer,
)
from hostile_pickles import hostile, write_archive
from open_clip_checkpoints import open_clip_state, save_open_clip, shape_config, write_config
from safetensors.torch import save_file

from must_jax.convert import convert, load_converted
from must_jax.convert.conversion import read_checkpoint
from must_jax.convert.fields import OPENAI_MEAN, OPENAI_STD
from must_jax.convert.open_clip import read_spec
from must_jax.errors import UserError

# `TINY` in OpenCLIP's terms. 128 * 1.504 is 192.512, and OpenCLIP rounds down.
MODEL_CFG = {
    "embed_dim": 48,
    "vision_cfg": {
        "layers": 3,
        "width": 128,
        "head_width": 64,
        "mlp_ratio": 1.504,
        "image_size": 32,
        "patch_size": 8,
    },
    "text_cfg": {
        "layers": 2,
        "width": 64,
        "heads": 1,
        "mlp_ratio": 2.5,
        "context_length": 16,
        "vocab_size": 99,
    },
}
GELU = {
    tower: TINY[tower] | {"hidden_act": "gelu"} | ({"eos_token_id": 2} if tower == "text" else {})
    for tower in ("vision", "text")
}


@pytest.fixture(scope="module")
def clip():
    return make_clip(**TINY | GELU)


@pytest.fixture(scope="module")
def reference(clip, tmp_path_factory):
    """The same weights by way of the Hugging Face layout, which has tests of its own."""
    folder = save_clip(clip, tmp_path_factory.mktemp("hf"))
    spec, _, params = read_checkpoint(folder, activation=None)
    return spec, params


@pytest.fixture
def source(clip, tmp_path):
    return save_open_clip(clip, MODEL_CFG, tmp_path / "source")


def assert_reads(folder, reference):
    spec, layout, params = read_checkpoint(folder, activation=None)
    assert layout == "OpenCLIP"
    assert spec == reference[0]
    assert jax.tree.structure(params) == jax.tree.structure(reference[1])
    jax.tree.map(np.testing.assert_array_equal, params, reference[1])


@pytest.mark.parity
@pytest.mark.parametrize("custom_text", [False, True])
@pytest.mark.parametrize(
    "file",
    ["open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors"],
)
def test_every_kind_of_file_gives_the_hugging_face_parameters(
    file, custom_text, clip, reference, tmp_path
):
    save_open_clip(clip, MODEL_CFG, tmp_path, file=file, custom_text=custom_text)
    assert_reads(tmp_path, reference)


@pytest.mark.parity
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards(suffix, clip, reference, tmp_path):
    write_config(tmp_path, MODEL_CFG)
    state = open_clip_state(clip)
    stem = "open_clip_model" if suffix == "safetensors" else "open_clip_pytorch_model"
    weight_map = {}
    for number in range(2):
        shard = dict(list(state.items())[number::2])
        name = f"{stem}-0000{number + 1}-of-00002.{suffix}"
        (save_file if suffix == "safetensors" else torch.save)(shard, tmp_path / name)
        weight_map |= dict.fromkeys(shard, name)
    index = tmp_path / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert_reads(tmp_path, reference)


def test_a_whole_conversion(source, reference, tmp_path):
    summary = convert(source, tmp_path / "target")
    spec, params = load_converted(tmp_path / "target")
    assert spec == reference[0]
    jax.tree.map(np.testing.assert_array_equal, params, reference[1])
    assert str(summary).startswith("OpenCLIP: ViT 3x128 patch 8 image 32")


@pytest.mark.parametrize("kind", ["both", "hugging_face"])
def test_of_a_folder_with_two_models_open_clips_is_taken_if_its_weights_are_there(
    kind, clip, source
):
    # The Hugging Face model differs, to tell which was read.
    save_clip(make_clip(seed=1, **TINY | GELU), source)
    if kind == "hugging_face":
        (source / "open_clip_model.safetensors").unlink()
    _, layout, _ = read_checkpoint(source, activation=None)
    assert layout == ("OpenCLIP" if kind == "both" else "Hugging Face CLIPModel")


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_published_shapes_are_read_with_their_defaults(activation, tmp_path):
    for name in ("ViT-B-32", "ViT-L-14-336", "ViT-H-14", "ViT-g-14"):
        config, model_cfg = shape_config(name, activation=activation)
        write_config(tmp_path, model_cfg)
        spec = read_spec(tmp_path)
        for ours, theirs in [(spec.vision, config["vision"]), (spec.text, config["text"])]:
            assert ours.width == theirs["hidden_size"]
            assert ours.depth == theirs["num_hidden_layers"]
            assert ours.num_heads == theirs["num_attention_heads"]
            assert ours.mlp_dim == theirs["intermediate_size"]
            assert ours.activation == activation
            assert ours.layer_norm_eps == 1e-5
        assert spec.vision.image_size == config["vision"]["image_size"]
        assert spec.vision.patch_size == config["vision"]["patch_size"]
        assert (spec.text.vocab_size, spec.text.context_length) == (49408, 77)
        assert spec.text.eot_token_id is None
        assert spec.embed_dim == config["projection_dim"]
        assert (spec.image_mean, spec.image_std) == (OPENAI_MEAN, OPENAI_STD)


def test_statistics_and_epsilons_are_read(tmp_path):
    model_cfg = MODEL_CFG | {
        "vision_cfg": MODEL_CFG["vision_cfg"] | {"norm_kwargs": {"eps": 1e-6}},
    }
    write_config(tmp_path, model_cfg, mean=[0.5, 0.4, 0.3], std=[0.1, 0.2, 1], size=[32, 32])
    spec = read_spec(tmp_path)
    assert (spec.image_mean, spec.image_std) == ((0.5, 0.4, 0.3), (0.1, 0.2, 1.0))
    assert (spec.vision.layer_norm_eps, spec.text.layer_norm_eps) == (1e-6, 1e-5)


def test_fields_that_change_nothing_are_passed_over(tmp_path):
    vision = {"patch_dropout": 0.5, "timm_pool": "avg", "ls_init_value": None, "qk_norm": False}
    text = {"hf_tokenizer_name": "me/my-clip", "pool_type": "argmax", "proj_type": "linear"}
    model_cfg = MODEL_CFG | {
        "custom_text": True,
        "multimodal_cfg": {},
        "vision_cfg": MODEL_CFG["vision_cfg"] | vision | {"global_average_pool": False},
        "text_cfg": MODEL_CFG["text_cfg"] | text | {"tokenizer_kwargs": {}},
    }
    write_config(tmp_path / "plain", MODEL_CFG)
    write_config(tmp_path / "more", model_cfg)
    assert read_spec(tmp_path / "more") == read_spec(tmp_path / "plain")


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        ("text_cfg", "hf_model_name", "roberta-base", "hf_model_name is 'roberta-base'"),
        ("text_cfg", "no_causal_mask", True, "no_causal_mask is True"),
        ("text_cfg", "pool_type", "last", "pool_type is 'last', supported is 'argmax'"),
        ("text_cfg", "pool_type", "eos", "pool_type is 'eos', supported is 'argmax'"),
        ("text_cfg", "proj_type", "none", "proj_type is 'none', supported is 'linear'"),
        ("text_cfg", "proj_bias", True, "proj_bias is True"),
        ("text_cfg", "embed_cls", True, "embed_cls is True"),
        ("text_cfg", "tokenizer_kwargs", {"clean": "canonicalize"}, "tokenizer_kwargs is {'clean"),
        ("text_cfg", "act_kwargs", {"approximate": "tanh"}, "act_kwargs is {'approximate'"),
        ("text_cfg", "heads", 7, "width 64 is not a multiple of heads 7"),
        ("text_cfg", "width", "64", "width is '64', expected a positive integer"),
        ("text_cfg", "new_field", "on", "new_field is 'on'"),
        ("vision_cfg", "timm_model_name", "convnext_base", "timm_model_name is 'convnext_base'"),
        ("vision_cfg", "attentional_pool", "parallel", "attentional_pool is 'parallel'"),
        ("vision_cfg", "pool_type", "avg", "pool_type is 'avg', supported is 'tok'"),
        ("vision_cfg", "no_ln_pre", True, "no_ln_pre is True"),
        ("vision_cfg", "ls_init_value", 0.0, "ls_init_value is 0.0"),
        ("vision_cfg", "pos_embed_type", "sin_cos_2d", "pos_embed_type is 'sin_cos_2d'"),
        ("vision_cfg", "layers", [3, 4, 6, 3], "a ResNet"),
        ("vision_cfg", "head_width", 60, "width 128 is not a multiple of head_width 60"),
        ("vision_cfg", "mlp_ratio", -1, "mlp_ratio is -1, expected a positive number"),
        ("vision_cfg", "norm_kwargs", {"affine": 1}, "norm_kwargs is {'affine': 1}"),
        ("vision_cfg", "norm_kwargs", {"eps": "a"}, "norm_kwargs: eps is 'a'"),
        ("vision_cfg", "image_size", [32, 40], "only square"),
        ("vision_cfg", "image_size", 33, "33 is not a multiple of patch_size 8"),
        ("model_cfg", "multimodal_cfg", {"width": 768}, "multimodal_cfg is {'width': 768}"),
        ("model_cfg", "init_logit_bias", -10, "init_logit_bias is -10 (a SigLIP"),
        ("model_cfg", "quick_gelu", "no", "quick_gelu is 'no', expected true or false"),
        ("model_cfg", "embed_dim", None, "embed_dim is None"),
        ("model_cfg", "text_cfg", [1], "text_cfg is no object"),
        ("preprocess_cfg", "mean", [0.5], "mean is [0.5]"),
        ("preprocess_cfg", "std", [0.5, 0, 1], "std is [0.5, 0, 1]"),
    ],
)
def test_other_models_are_refused_by_name(part, field, value, message, tmp_path):
    write_config(tmp_path, MODEL_CFG)

    def change(config):
        parts = {**config, **config["model_cfg"]}
        parts[part][field] = value

    edit_json(tmp_path / "open_clip_config.json", change)
    with pytest.raises(UserError) as error:
        read_spec(tmp_path)
    assert message in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "open_clip_config.json"))
    assert "\n" not in str(error.value)


def test_all_that_is_odd_about_a_tower_is_named(tmp_path):
    vision = MODEL_CFG["vision_cfg"] | {"no_ln_pre": True, "pool_type": "avg"}
    write_config(tmp_path, MODEL_CFG | {"vision_cfg": vision})
    with pytest.raises(UserError, match="no_ln_pre is True; pool_type is 'avg'"):
        read_spec(tmp_path)


def rewrite(change):
    """Rewrites the weights after `change` of the state dict."""

    def damage(source):
        state = open_clip_state(make_clip(**TINY | GELU))
        change(state)
        save_file(state, source / "open_clip_model.safetensors")

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("open_clip_config.json"), "unknown layout"),
        (replace("open_clip_config.json", b"{"), "open_clip_config.json: not JSON"),
        (replace("open_clip_config.json", b"{}"), "model_cfg is no object"),
        (remove("open_clip_model.safetensors"), "no weights; expected open_clip_model.safetensors"),
        (replace("open_clip_model.safetensors", b"x"), "not a readable safetensors file"),
        (remove("vocab.json"), "no tokenizer"),
        (lambda source: write_tokenizer(source, 120), "120 tokens"),
        (rewrite(lambda state: state.pop("visual.proj")), "missing: visual.proj"),
        (rewrite(lambda state: state.pop("logit_scale")), "missing: logit_scale"),
        (
            rewrite(lambda state: state.update({"visual.ls.gamma": torch.ones(1)})),
            "left over: visual.ls.gamma",
        ),
        (
            rewrite(lambda state: state.update({"visual.proj": torch.ones(48, 128)})),
            "visual.proj is (48, 128), expected (128, 48)",
        ),
        (
            rewrite(lambda state: state["ln_final.bias"].fill_(float("nan"))),
            "ln_final.bias holds numbers that are not finite",
        ),
        (
            rewrite(lambda state: state.update({"ln_final.bias": torch.ones(64).long()})),
            "ln_final.bias is of type int64",
        ),
    ],
)
def test_damaged_folders_are_told_in_one_line_and_leave_nothing(damage, message, source, tmp_path):
    damage(source)
    with pytest.raises(UserError) as error:
        convert(source, tmp_path / "target")
    assert message in str(error.value)
    assert str(error.value).startswith(str(source))
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("family", "file"),
    [
        ("openai", "clip.pt"),
        ("hugging_face", "pytorch_model.bin"),
        ("hugging_face", "pytorch_model-00001-of-00001.bin"),
        ("open_clip", "open_clip_pytorch_model.bin"),
        ("open_clip", "open_clip_pytorch_model-00001-of-00001.bin"),
    ],
)
def test_a_hostile_pickle_is_refused_by_name_and_runs_nothing(family, file, clip, tmp_path):
    """`test_convert_archive.py` has many more, and shows that they would run."""
    source, marker = tmp_path / "source", tmp_path / "ran"
    if family == "open_clip":
        save_open_clip(clip, MODEL_CFG, source)
    else:
        save_clip(clip, source)
    for weights in source.glob("*.safetensors"):
        weights.unlink()
    pickled, name = hostile(marker)["nested"]
    write_archive(source / file, {"a/data.pkl": pickled})
    if "-of-" in file:
        index = source / f"{file.partition('-')[0]}.bin.index.json"
        index.write_text(json.dumps({"weight_map": {"logit_scale": file}}))
    with pytest.raises(UserError, match=f"{file}: refused, its pickle asks for {name}"):
        convert(source / file if family == "openai" else source, tmp_path / "target")
    assert not marker.exists()
    assert not (tmp_path / "target").exists()


def test_an_activation_is_not_asked_for(source):
    with pytest.raises(UserError, match="its configuration gives the activation"):
        read_checkpoint(source, activation="gelu")
