"""SigLIP folders: what is read of a configuration, and what is refused."""

import json

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from siglip_checkpoints import TINY, make_siglip, save_siglip, write_gemma
from transformers import SiglipConfig
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

from must_jax.config import check_patches, default_config
from must_jax.convert import convert, load_converted
from must_jax.convert.conversion import read_checkpoint
from must_jax.convert.siglip import read_spec
from must_jax.errors import UserError


@pytest.fixture(scope="module")
def siglip():
    return make_siglip(**TINY)


@pytest.fixture
def source(siglip, tmp_path):
    return save_siglip(siglip, tmp_path / "source")


def write_config(folder, **config):
    (folder / "config.json").write_text(json.dumps({"model_type": "siglip"} | config))


@pytest.mark.parity
def test_absent_fields_have_the_defaults_of_transformers(tmp_path):
    write_config(tmp_path)
    spec, config = read_spec(tmp_path), SiglipConfig()
    for ours, theirs in [(spec.vision, config.vision_config), (spec.text, config.text_config)]:
        assert ours.width == theirs.hidden_size
        assert ours.depth == theirs.num_hidden_layers
        assert ours.num_heads == theirs.num_attention_heads
        assert ours.mlp_dim == theirs.intermediate_size
        assert theirs.hidden_act == "gelu_pytorch_tanh"
        assert ours.activation == "gelu_tanh"
        assert ours.layer_norm_eps == theirs.layer_norm_eps
    assert config.vision_config.vision_use_head
    assert spec.vision.image_size == config.vision_config.image_size
    assert spec.vision.patch_size == config.vision_config.patch_size
    assert spec.text.vocab_size == config.text_config.vocab_size
    assert spec.text.context_length == config.text_config.max_position_embeddings
    assert spec.embed_dim == config.text_config.projection_size
    assert list(spec.image_mean) == IMAGENET_STANDARD_MEAN
    assert list(spec.image_std) == IMAGENET_STANDARD_STD


def test_patches_that_do_not_fill_the_image(tmp_path):
    write_config(tmp_path, vision_config={"image_size": 384, "patch_size": 14})
    spec = read_spec(tmp_path)
    assert (spec.vision.image_size, spec.vision.num_tokens) == (378, 27**2)
    config = default_config()
    config.image_size = 384
    with pytest.raises(UserError, match=r"image_size is 384; .* patch size 14, such as 378 "):
        check_patches(config, patch_size=14)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"vision_config": {"vision_use_head": False}}, "vision_use_head"),
        ({"vision_config": {"num_channels": 1}}, "num_channels is 1"),
        ({"vision_config": {"image_size": 8}}, "image_size 8 is less than patch_size 16"),
        ({"vision_config": {"image_size": [224, 192]}}, "only square"),
        ({"vision_config": {"hidden_act": "relu"}}, "hidden_act 'relu' is not supported"),
        ({"text_config": {"projection_size": 5}}, "projected to 5, images pooled to 768"),
        ({"text_config": {"num_attention_heads": 7}}, "not a multiple"),
        ({"text_config": {"vocab_size": 0}}, "vocab_size is 0"),
    ],
)
def test_configurations_that_are_no_siglip_are_refused(config, message, tmp_path):
    write_config(tmp_path, **config)
    with pytest.raises(UserError) as error:
        read_spec(tmp_path)
    assert message in str(error.value)
    assert str(tmp_path / "config.json") in str(error.value)


def test_naflex_is_refused_by_name(tmp_path):
    write_config(tmp_path, model_type="siglip2")
    with pytest.raises(UserError, match=r"NaFlex.*google/siglip2-base-patch16-224"):
        convert(tmp_path, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_what_is_missing_or_left_over_is_named(source, tmp_path):
    weights = load_file(source / "model.safetensors")
    del weights["vision_model.head.probe"], weights["logit_bias"]
    weights["vision_model.head.extra"] = torch.zeros(1)
    save_file(weights, source / "model.safetensors")
    with pytest.raises(UserError) as error:
        convert(source, tmp_path / "target")
    assert "missing: logit_bias, vision_model.head.probe" in str(error.value)
    assert "left over: vision_model.head.extra" in str(error.value)


def test_shards_and_half_precision_are_read(siglip, source, tmp_path):
    expected = read_checkpoint(source, activation=None)[2]
    half = save_siglip(make_siglip(**TINY).half(), tmp_path / "half", max_shard_size="20KB")
    assert len(list(half.glob("*.safetensors"))) > 1
    convert(half, tmp_path / "target")
    spec, params = load_converted(tmp_path / "target")
    assert spec.logit_scale == pytest.approx(np.exp(4.7655), rel=1e-3)
    # float16 keeps 11 bits.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), params, expected
    )


def test_the_tokenizer_has_to_be_there_and_of_this_checkpoint(source, tmp_path):
    (source / "spiece.model").unlink()
    with pytest.raises(UserError, match=r"no tokenizer there, expected .*spiece\.model"):
        convert(source, tmp_path / "target")
    write_gemma(source)
    with pytest.raises(UserError, match="400 tokens, the checkpoint's vocabulary 45"):
        convert(source, tmp_path / "target")
