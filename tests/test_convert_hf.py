"""Hugging Face CLIP folders: what is read, and what is refused."""

import json

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
    remove,
    replace,
    save_clip,
    write_tokenizer,
)
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPProcessor, CLIPTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from must_jax.convert import convert, load_converted
from must_jax.convert.conversion import read_checkpoint
from must_jax.convert.fields import OPENAI_MEAN, OPENAI_STD
from must_jax.convert.hugging_face import read_spec
from must_jax.errors import UserError
from must_jax.models import TextTransformer, VisionTransformer


@pytest.fixture(scope="module")
def clip():
    return make_clip(**TINY)


@pytest.fixture
def source(clip, tmp_path):
    return save_clip(clip, tmp_path / "source")


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


@pytest.mark.parametrize("kind", ["sharded", "torch", "torch_sharded"])
def test_other_files_give_the_same_parameters(kind, clip, source, tmp_path):
    other = tmp_path / kind
    save_clip(clip, other, max_shard_size="500KB" if "sharded" in kind else "1GB")
    shards = list(other.glob("*.safetensors"))
    assert (len(shards) > 2) == ("sharded" in kind)
    if "torch" in kind:
        for file in shards:
            torch.save(load_file(file), other / torch_name(file.name))
            file.unlink()
    if kind == "torch_sharded":
        index = json.loads((other / "model.safetensors.index.json").read_text())
        for key, file in index["weight_map"].items():
            index["weight_map"][key] = torch_name(file)
        (other / "model.safetensors.index.json").unlink()
        (other / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    spec, _, params = read_checkpoint(other, activation=None)
    expected_spec, _, expected = read_checkpoint(source, activation=None)
    assert spec == expected_spec
    assert_same_trees(params, expected)


def torch_name(name):
    return name.replace("model", "pytorch_model").replace(".safetensors", ".bin")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_halves_stay_halves_until_they_are_loaded(dtype, source, tmp_path):
    half = make_clip(**TINY).to(dtype)
    other = save_clip(half, tmp_path / "other")
    save_clip(half.float(), source)
    _, _, params = read_checkpoint(other, activation=None)
    _, _, expected = read_checkpoint(source, activation=None)
    assert_same_trees(params, expected)
    kept = "float32" if dtype == torch.float64 else str(dtype).removeprefix("torch.")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {kept}

    convert(other, tmp_path / "target")
    _, loaded = load_converted(tmp_path / "target")
    assert_same_trees(loaded, expected)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded)} == {"float32"}


def test_blocks_of_several_types_become_single_precision(clip, source):
    _, _, expected = read_checkpoint(source, activation=None)
    bias = "vision_model.encoder.layers.1.mlp.fc1.bias"
    edit_weights(source, lambda w: w.update({bias: w[bias].to(torch.bfloat16)}))
    _, _, params = read_checkpoint(source, activation=None)
    ours, theirs = (tree["vision"]["blocks"]["mlp"]["fc1"]["bias"] for tree in (params, expected))
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours[[0, 2]], theirs[[0, 2]])
    rounded = torch.tensor(theirs[1]).bfloat16().float()
    np.testing.assert_array_equal(ours[1], rounded)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name(value, source):
    name = "text_model.encoder.layers.1.self_attn.k_proj.weight"
    edit_weights(source, lambda w: w[name].view(-1)[7].fill_(value))
    with pytest.raises(UserError, match=f"{name} holds numbers that are not finite"):
        read_checkpoint(source, activation=None)


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
    spec = read_spec(tmp_path)
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
        vision_config={"hidden_size": 64, "num_attention_heads": 4, "hidden_act": "gelu"},
        vision_config_dict={"hidden_size": 120, "image_size": [64, 64]},
        text_config=None,
        text_config_dict={"eos_token_id": 2},
        projection_dim=7,
    )
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(statistics))
    spec = read_spec(tmp_path)
    # What the repetition leaves out is the default's, as transformers has it.
    assert (spec.vision.width, spec.vision.image_size) == (120, 64)
    assert (spec.vision.num_heads, spec.vision.activation) == (12, "quick_gelu")
    assert spec.text.eot_token_id is None
    assert spec.embed_dim == 7
    assert (spec.image_mean, spec.image_std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))


def test_statistics_as_transformers_5_writes_them(tmp_path):
    write_config(tmp_path)
    processor = CLIPImageProcessorPil(image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7])
    write_tokenizer(tmp_path, 99)
    tokenizer = CLIPTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    CLIPProcessor(processor, tokenizer).save_pretrained(tmp_path)
    assert (tmp_path / "processor_config.json").is_file()
    old = {"image_mean": [0.9, 0.9, 0.9]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    spec = read_spec(tmp_path)
    assert (spec.image_mean, spec.image_std) == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))


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


def test_query_key_and_value_of_different_types(clip, source):
    key = "vision_model.encoder.layers.0.self_attn.{}_proj.weight"
    types = {"q": torch.bfloat16, "k": torch.float16, "v": torch.float32}

    def edit(tensors):
        for name, dtype in types.items():
            tensors[key.format(name)] = tensors[key.format(name)].to(dtype)

    edit_weights(source, edit)
    _, _, params = read_checkpoint(source, activation=None)
    kernel = params["vision"]["blocks"]["attn"]["qkv"]["kernel"]
    assert kernel.dtype == np.float32
    for i, (name, dtype) in enumerate(types.items()):
        expected = clip.state_dict()[key.format(name)].to(dtype).float().numpy()
        np.testing.assert_array_equal(kernel[0, :, i].reshape(128, 128).T, expected)


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
