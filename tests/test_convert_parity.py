"""Both towers of converted checkpoints against transformers' own CLIP in torch."""

import jax
import numpy as np
import pytest
import torch
from clip_checkpoints import TINY, make_clip, save_clip

from must_jax.convert import convert, load_converted
from must_jax.convert.conversion import read_checkpoint
from must_jax.models import TextTransformer, VisionTransformer
from must_jax.models.layers import l2_normalize

pytestmark = pytest.mark.parity

SMALL_TEXT = TINY["text"]
VIT_B_32 = {"vision": {"patch_size": 32}, "text": {}, "projection_dim": 512}
VIT_B_16 = {"vision": {"patch_size": 16}, "text": SMALL_TEXT, "projection_dim": 512}
VIT_L_14 = {
    "vision": {
        "patch_size": 14,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
    "text": SMALL_TEXT,
    "projection_dim": 768,
}


def tiny(**text):
    return TINY | {"text": TINY["text"] | text}


def with_activation(name):
    return TINY | {tower: TINY[tower] | {"hidden_act": name} for tower in ("vision", "text")}


def assert_same_logits(config, folder, *, batch_size=2, seed=0, through_target=True):
    model = make_clip(seed=seed, **config)
    source = save_clip(model, folder / "source")
    if through_target:
        convert(source, folder / "target")
        spec, params = load_converted(folder / "target")
    else:
        spec, _, params = read_checkpoint(source, activation=None)

    generator = torch.Generator().manual_seed(seed)
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

    # The bound. float32 alone moves torch's own logits by 6e-6 from its float64 ones.
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
    assert_same_logits(config, tmp_path, batch_size=3)


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


@pytest.mark.slow
def test_vit_b_32_with_the_true_vocabulary(tmp_path):
    assert_same_logits(VIT_B_32, tmp_path)


@pytest.mark.slow
def test_vit_b_16(tmp_path):
    assert_same_logits(VIT_B_16, tmp_path)


@pytest.mark.slow
def test_vit_l_14(tmp_path):
    # Writing a gigabyte and reading it back would double the time, and the others do it.
    assert_same_logits(VIT_L_14, tmp_path, batch_size=1, through_target=False)
