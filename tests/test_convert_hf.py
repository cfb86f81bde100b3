"""Hugging Face CLIP folders: what is read of them."""

import json

import jax
import numpy as np
import pytest
import torch
from clip_checkpoints import (
    TINY,
    assert_same_trees,
    edit_weights,
    make_clip,
    save_clip,
    write_config,
    write_tokenizer,
)
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPProcessor, CLIPTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from must_jax.convert import convert, load_converted
from must_jax.convert.conversion import read_checkpoint
from must_jax.convert.fields import OPENAI_MEAN, OPENAI_STD
from must_jax.convert.hugging_face import read_spec
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


def test_position_ids_of_old_files_are_passed_over(source):
    def add(weights):
        weights["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
        weights["text_model.embeddings.position_ids"] = torch.arange(16)[None]

    edit_weights(source, add)
    read_checkpoint(source, activation=None)


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
