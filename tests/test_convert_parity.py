"""Both towers of converted checkpoints against transformers' own CLIP in torch."""

from typing import NamedTuple

import jax
import numpy as np
import pytest
import torch
from clip_checkpoints import TINY, make_clip, save_clip, save_openai
from full_size import checksums, compute_in_float32, give_back_memory, onto_device
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


class Reference(NamedTuple):
    """What torch makes of images (B, 3, R, R) and token ids (2, T); embeddings of unit length."""

    images: np.ndarray
    ids: np.ndarray
    image_embeds: np.ndarray
    text_embeds: np.ndarray
    logits: np.ndarray


def run_torch(model, *, batch_size=1):
    generator = torch.Generator().manual_seed(0)
    size, text = model.config.vision_config.image_size, model.config.text_config
    images = torch.randn(batch_size, 3, size, size, generator=generator)
    end = text.vocab_size - 1
    ids = torch.randint(0, end - 1, (2, text.max_position_embeddings), generator=generator)
    # Ends at different places, one text with a second end token after its first.
    ids[:, -1] = end
    ids[0, 4] = ids[0, 9] = end
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=images)
    arrays = (images, ids, out.image_embeds, out.text_embeds, out.logits_per_image)
    return Reference(*(array.numpy() for array in arrays))


def assert_same_logits(spec, params, reference):
    vision = VisionTransformer(spec.vision, spec.embed_dim)
    images = reference.images.transpose(0, 2, 3, 1)
    image_embed = jax.jit(vision.apply)(
        {"params": onto_device(params["vision"])}, images
    ).image_embed
    text = TextTransformer(spec.text, spec.embed_dim)
    text_embed = l2_normalize(
        jax.jit(text.apply)({"params": onto_device(params["text"])}, reference.ids)
    )
    logits = spec.logit_scale * image_embed @ text_embed.T

    # float32 rounding: seen were 2e-7 in entries of unit vectors, and 1e-5 in logits, which the
    # scale of 100 enlarges.
    for ours, theirs, atol in [
        (image_embed, reference.image_embeds, 1e-6),
        (text_embed, reference.text_embeds, 1e-6),
        (logits, reference.logits, 1e-4),
    ]:
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)
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
    spec, params = load_converted(tmp_path / "target")
    assert_same_logits(spec, params, run_torch(model, batch_size=3))


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


SAVE = {
    "hugging_face": lambda model, _, folder: save_clip(model, folder, max_shard_size="1GB"),
    "open_clip": save_open_clip,
    "openai": lambda model, _, folder: save_openai(model, folder),
}


# Every depth, width, head, MLP, vocabulary, patch and image size is the published one, the files
# are of half precision. OpenAI's shapes were trained with QuickGELU, LAION's larger ones without.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize(
    ("name", "activation", "families"),
    [
        ("ViT-B-32", "quick_gelu", SAVE),
        ("ViT-B-16", "quick_gelu", SAVE),
        ("ViT-L-14", "quick_gelu", SAVE),
        ("ViT-L-14-336", "quick_gelu", ["hugging_face", "openai"]),
        ("ViT-H-14", "gelu", ["hugging_face", "open_clip"]),
        ("ViT-g-14", "gelu", ["open_clip"]),
    ],
)
def test_published_shapes(name, activation, families, tmp_path):
    config, model_cfg = shape_config(name, activation=activation)
    model = make_clip(**config, dtype=torch.float16)
    sources = [SAVE[family](model, model_cfg, tmp_path / family) for family in families]
    compute_in_float32(model)
    reference = run_torch(model)
    del model
    give_back_memory()

    found = []
    for source in sources:
        params = None  # of the file before, whose memory this one needs
        spec, _, params = read_checkpoint(source, activation=None)
        found.append((spec, checksums(params)))
    assert found == found[:1] * len(sources)
    assert_same_logits(spec, params, reference)
