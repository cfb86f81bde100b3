"""Both towers of converted checkpoints against transformers' own CLIP in torch."""

import jax
import numpy as np
import pytest
import torch
from clip_checkpoints import TINY, make_clip, save_clip, save_openai
from open_clip_checkpoints import save_open_clip, shape_config

from must_jax.convert import convert, load_converted
from must_jax.convert.conversion import read_checkpoint
from must_jax.models import TextTransformer, VisionTransformer
from must_jax.models.layers import l2_normalize

pytestmark = pytest.mark.parity


def tiny(**text):
    return TINY | {"text": TINY["text"] | text}


def with_activation(name):
    return TINY | {tower: TINY[tower] | {"hidden_act": name} for tower in ("vision", "text")}


def assert_same_logits(model, spec, params, *, batch_size=2):
    generator = torch.Generator().manual_seed(0)
    size = spec.vision.image_size
    images = torch.randn(batch_size, 3, size, size, generator=generator)
    length, end = spec.text.context_length, spec.text.vocab_size - 1
    ids = torch.randint(0, end - 1, (batch_size, length), generator=generator)
    # Ends at different places, one text with a second end token after its first.
    ids[:, -1] = end
    ids[0, 4] = ids[0, 9] = end
    with torch.no_grad():
        theirs = model(input_ids=ids, pixel_values=images)
        texts = model.text_projection(model.text_model(ids).pooler_output)

    vision = VisionTransformer(spec.vision, spec.embed_dim)
    text = TextTransformer(spec.text, spec.embed_dim)
    image_embed = jax.jit(vision.apply)(
        {"params": params["vision"]}, images.permute(0, 2, 3, 1).numpy()
    ).image_embed
    text_embed = jax.jit(text.apply)({"params": params["text"]}, ids.numpy())
    logits = spec.logit_scale * image_embed @ l2_normalize(text_embed).T

    # float32 alone moves torch's own logits by 6e-6 from its float64 ones.
    for ours, reference in [
        (image_embed, theirs.image_embeds),
        (text_embed, texts),
        (logits, theirs.logits_per_image),
    ]:
        np.testing.assert_allclose(ours, reference.numpy(), rtol=0, atol=1e-4)
    assert np.abs(logits).max() > 0.5


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(TINY, id="quick_gelu"),
        pytest.param(with_activation("gelu"), id="exact_gelu"),
        # Id 2 is in files from before the end token was recorded: the largest id is pooled.
        pytest.param(tiny(eos_token_id=2), id="pooled_at_largest_id"),
        pytest.param(TINY | {"vision": TINY["vision"] | {"layer_norm_eps": 1e-3}}, id="epsilon"),
    ],
)
def test_tiny(config, tmp_path):
    model = make_clip(**config)
    convert(save_clip(model, tmp_path / "source"), tmp_path / "target")
    assert_same_logits(model, *load_converted(tmp_path / "target"), batch_size=3)


def test_end_token_below_the_largest_id_is_found_by_its_position(tmp_path):
    # Bigger ids than the end token's come after it here; the largest id would pool them.
    model = make_clip(**tiny(eos_token_id=50))
    spec_ids = torch.tensor([[97, 3, 50, 98, 96, 50] + [0] * 10])
    with torch.no_grad():
        reference = model.text_projection(model.text_model(spec_ids).pooler_output).numpy()
    source = save_clip(model, tmp_path / "source")
    spec, _, params = read_checkpoint(source, activation=None)
    tower = TextTransformer(spec.text, spec.embed_dim)
    ours = tower.apply({"params": params["text"]}, spec_ids.numpy())
    np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-5)


def assert_same_checkpoint(source, *, spec, params):
    """What another family's file of the same weights gives, bit for bit."""
    its_spec, _, its_params = read_checkpoint(source, activation=None)
    assert its_spec == spec
    assert jax.tree.structure(its_params) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, its_params, params)


# Every width, head, MLP, patch and image size is the published one. Of the larger models, the first
# blocks stand for all: `tools/check_open_clip.py` runs them at their full depth.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "activation", "fewer"),
    [
        ("ViT-B-32", "quick_gelu", {}),
        ("ViT-B-16", "gelu", {"layers": 4, "vocab_size": 99}),
        ("ViT-L-14", "quick_gelu", {"layers": 2, "vocab_size": 99}),
        ("ViT-L-14-336", "quick_gelu", {"layers": 1, "vocab_size": 99}),
        ("ViT-H-14", "gelu", {"layers": 2, "vocab_size": 99}),
        ("ViT-g-14", "gelu", {"layers": 2, "vocab_size": 99}),
    ],
)
def test_published_shapes_in_every_family(name, activation, fewer, tmp_path):
    config, model_cfg = shape_config(name, activation=activation, **fewer)
    model = make_clip(**config)
    spec, _, params = read_checkpoint(save_clip(model, tmp_path / "hf"), activation=None)
    assert_same_logits(model, spec, params, batch_size=1)

    open_clip = save_open_clip(model, model_cfg, tmp_path / "open_clip")
    assert_same_checkpoint(open_clip, spec=spec, params=params)
    # OpenAI published the shapes with heads of 64 units, and trained them with QuickGELU.
    if activation == "quick_gelu":
        assert_same_checkpoint(save_openai(model, tmp_path), spec=spec, params=params)


@pytest.mark.slow
def test_vit_l_14_at_its_full_depth(tmp_path):
    config, _ = shape_config("ViT-L-14", activation="quick_gelu")
    config["text"] = TINY["text"]
    model = make_clip(**config)
    spec, _, params = read_checkpoint(save_clip(model, tmp_path), activation=None)
    assert_same_logits(model, spec, params, batch_size=1)
