"""The image tower's own parts; whole towers are compared in the conversion and golden tests."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from must_jax.convert import siglip
from must_jax.models import ClipSpec, VisionTransformer, encode
from must_jax.models.layers import l2_normalize
from must_jax.models.pooling import AttentionPool
from must_jax.models.vit import patchify, resample_pos_embed
from must_jax.state import init_params
from must_jax.train_step import mim_target

CLIP = tiny_run.SPEC.vision
SIGLIP = dataclasses.replace(CLIP, pooling="attention", activation="gelu_tanh")


@pytest.fixture(scope="module", params=[CLIP, SIGLIP], ids=["clip", "siglip"])
def tower(request):
    embed_dim = 16 if request.param.has_class_token else request.param.width
    model = VisionTransformer(request.param, embed_dim, num_classes=3)
    params = init_params(model, jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    return model, params, images


def test_masked_pixels_do_not_reach_the_output(tower):
    model, params, images = tower
    masked = jnp.full((2, 1), 5)
    # Patch 5 of a 4 x 4 grid: row 1, column 1.
    changed = images.at[:, 4:8, 4:8].add(7.0)
    same, other = (encode(model, params, x, masked) for x in (images, changed))
    np.testing.assert_array_equal(same.logits, other.logits)
    np.testing.assert_array_equal(same.reconstruction, other.reconstruction)
    seen = encode(model, params, changed, jnp.zeros((2, 0), int))
    assert not np.allclose(seen.logits, encode(model, params, images).logits)


def test_an_empty_mask_changes_nothing(tower):
    model, params, images = tower
    np.testing.assert_array_equal(
        encode(model, params, images, jnp.zeros((2, 0), int)).logits,
        encode(model, params, images).logits,
    )


def test_embeddings_have_unit_length(tower):
    model, params, images = tower
    output = encode(model, params, images, jnp.tile(jnp.arange(16), (2, 1)))
    for embeds in (output.image_embed, output.patch_embeds):
        np.testing.assert_allclose(np.linalg.norm(embeds, axis=-1), 1, rtol=1e-6)


def test_fresh_heads_are_drawn_as_the_method_says():
    spec = tiny_run.SPEC.vision
    model = VisionTransformer(spec, tiny_run.SPEC.embed_dim, num_classes=3)
    params = init_params(model, jax.random.key(3))
    bound = spec.width**-0.5
    kernel = np.asarray(params["decoder"]["kernel"])
    assert np.abs(kernel).max() <= bound
    # 1,536 uniform draws: their deviation is bound / sqrt(3), known to about 1 %.
    np.testing.assert_allclose(kernel.std(), bound / 3**0.5, rtol=0.05)
    assert 0 < np.abs(params["decoder"]["bias"]).max() <= bound
    # 32 normal draws know their deviation to about 12 %.
    np.testing.assert_allclose(np.std(params["mask_token"]), 0.02, rtol=0.5)
    np.testing.assert_array_equal(params["ln_patch"]["scale"], 1)
    np.testing.assert_array_equal(params["ln_patch"]["bias"], 0)


def test_patchify_is_row_major():
    images = jnp.arange(2 * 8 * 8 * 3).reshape(2, 8, 8, 3)
    patches = patchify(images, patch_size=4)
    np.testing.assert_array_equal(patches[1, 1], images[1, :4, 4:])
    np.testing.assert_array_equal(patches[1, 2], images[1, 4:, :4])


@pytest.mark.parity
def test_reconstruction_layout_is_torchs_pixel_shuffle():
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    target = np.asarray(mim_target(jnp.asarray(images), patch_size=4))  # (2, 4, 48)
    channels_first = torch.tensor(target).transpose(1, 2).reshape(2, 48, 2, 2)
    shuffled = torch.nn.functional.pixel_shuffle(channels_first, 4)
    np.testing.assert_array_equal(shuffled.permute(0, 2, 3, 1).numpy(), images)


@pytest.mark.parity
@pytest.mark.parametrize(("before", "after"), [(7, 7), (7, 14), (14, 7), (16, 24), (7, 5)])
def test_resampled_position_embeddings_match_torch(before, after):
    pos_embed = np.random.default_rng(0).normal(size=(before**2 + 1, 6)).astype(np.float32)
    grid = torch.tensor(pos_embed[1:]).T.reshape(1, 6, before, before)
    expected = torch.nn.functional.interpolate(
        grid, size=(after, after), mode="bicubic", antialias=True, align_corners=False
    )
    ours = resample_pos_embed(jnp.asarray(pos_embed), grid_size=after, has_class_token=True)
    np.testing.assert_array_equal(ours[0], pos_embed[0])
    # The weights of both are float32 and sum up to 25 terms of order one.
    np.testing.assert_allclose(ours[1:].T.reshape(1, 6, after, after), expected, rtol=0, atol=1e-5)


@pytest.mark.parity
def test_resampled_position_embeddings_without_class_token_match_torch():
    pos_embed = np.random.default_rng(0).normal(size=(14**2, 6)).astype(np.float32)
    grid = torch.tensor(pos_embed).T.reshape(1, 6, 14, 14)
    expected = torch.nn.functional.interpolate(
        grid, size=(24, 24), mode="bicubic", antialias=True, align_corners=False
    )
    ours = resample_pos_embed(jnp.asarray(pos_embed), grid_size=24, has_class_token=False)
    np.testing.assert_allclose(ours.T.reshape(1, 6, 24, 24), expected, rtol=0, atol=1e-5)


@pytest.mark.parity
def test_a_patch_is_pooled_by_siglips_head_as_if_it_were_alone():
    config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_attention_heads=2, num_hidden_layers=0
    )
    torch.manual_seed(0)
    head = SiglipVisionModel(config).head
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    tokens = torch.randn(3, 5, 32)
    with torch.no_grad():
        expected = [head(tokens[:, i : i + 1]) for i in range(5)]

    tensors = {f"vision_model.head.{k}": v.numpy() for k, v in head.state_dict().items()}
    spec = dataclasses.replace(SIGLIP, depth=1)
    params = {}
    for rule in siglip.LAYOUT.rules:
        parts = rule.path.split("/")
        if parts[:2] == ["vision", "pool"] and parts[2] != "ln_post":
            node = params
            for name in parts[2:-1]:
                node = node.setdefault(name, {})
            node[parts[-1]] = rule.transform.to_param(tensors[rule.sources[0]], spec)
    pool = AttentionPool(spec, jnp.float32)
    ours = pool.apply({"params": params}, tokens.numpy(), method="patches")
    # A few hundred float32 products of order one.
    np.testing.assert_allclose(ours, np.stack(expected, 1), rtol=0, atol=1e-5)


def test_normalizing_a_zero_vector_is_finite():
    value, grad = jax.value_and_grad(lambda x: l2_normalize(x).sum())(jnp.zeros(3))
    assert value == 0
    assert np.isfinite(grad).all()


def test_bfloat16_tower_stays_near_float32(tower):
    model, params, images = tower
    masked = jnp.array([[0, 4, 8, 12], [1, 5, 6, 15]])
    exact = encode(model, params, images, masked)
    rounded = encode(model.clone(dtype=jnp.bfloat16), params, images, masked)
    assert rounded.logits.dtype == jnp.float32
    # bfloat16 keeps 8 bits; a few layers of it leave about a hundredth of a unit embedding.
    np.testing.assert_allclose(rounded.image_embed, exact.image_embed, atol=0.03)
    np.testing.assert_allclose(rounded.reconstruction, exact.reconstruction, atol=0.05)


def test_spec_survives_json():
    spec = dataclasses.replace(
        tiny_run.SPEC,
        vision=SIGLIP,
        text=dataclasses.replace(
            tiny_run.SPEC.text, pooling="last_token", is_causal=False, proj_bias=True
        ),
        embed_dim=SIGLIP.width,
    )
    for original in (tiny_run.SPEC, spec):
        assert ClipSpec.from_json(original.to_json()) == original


def test_spec_written_before_there_was_siglip_is_clips():
    fields = json.loads(tiny_run.SPEC.to_json())
    del fields["vision"]["pooling"]
    for name in ("pooling", "is_causal", "proj_bias"):
        del fields["text"][name]
    assert ClipSpec.from_json(json.dumps(fields)) == tiny_run.SPEC


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dataclasses.replace(CLIP, activation="relu"), "activation 'relu' is none of"),
        (lambda: dataclasses.replace(CLIP, pooling="mean"), "pooling 'mean' is none of"),
        (
            lambda: dataclasses.replace(tiny_run.SPEC, vision=SIGLIP),
            "embedding 16 differs from the pooled width 32",
        ),
    ],
)
def test_impossible_specs_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
