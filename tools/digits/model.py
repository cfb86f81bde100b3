"""The small CLIP's two towers and its contrastive loss."""

from typing import Any

import jax
import jax.numpy as jnp

from digits import augment
from must_jax.models.layers import l2_normalize
from must_jax.models.spec import ClipSpec, TextSpec, VisionSpec
from must_jax.models.text import TextTransformer
from must_jax.models.vit import VisionTransformer

CONTEXT_LENGTH = 16
LOGIT_SCALE = 100.0

Params = dict[str, Any]


def clip_spec(*, vocab_size: int, end_token_id: int) -> ClipSpec:
    """The architecture: 32-pixel images in 8-pixel patches, 4 layers of width 128."""
    shared = {"activation": "quick_gelu", "layer_norm_eps": 1e-5}
    return ClipSpec(
        vision=VisionSpec(
            image_size=augment.IMAGE_SIZE,
            patch_size=8,
            width=128,
            depth=4,
            num_heads=4,
            mlp_dim=512,
            **shared,
        ),
        text=TextSpec(
            vocab_size=vocab_size,
            context_length=CONTEXT_LENGTH,
            width=64,
            depth=2,
            num_heads=2,
            mlp_dim=256,
            eot_token_id=end_token_id,
            **shared,
        ),
        embed_dim=64,
        logit_scale=LOGIT_SCALE,
        image_mean=(augment.MEAN,) * 3,
        image_std=(augment.STD,) * 3,
    )


def init_params(key: jax.Array, *, spec: ClipSpec) -> Params:
    """Fresh parameters of both towers, {"vision": ..., "text": ...}."""
    vision_key, text_key = jax.random.split(key)
    size = spec.vision.image_size
    images = jnp.zeros((1, size, size, 3))
    tokens = jnp.zeros((1, spec.text.context_length), jnp.int32)
    vision = VisionTransformer(spec.vision, spec.embed_dim).init(vision_key, images)
    text = TextTransformer(spec.text, spec.embed_dim).init(text_key, tokens)
    return {"vision": vision["params"], "text": text["params"]}


def encode_images(params: Params, images: jax.Array, *, spec: ClipSpec) -> jax.Array:
    """Unit embeddings (B, E) of images (B, R, R, 3) with values in 0..1."""
    tower = VisionTransformer(spec.vision, spec.embed_dim)
    return tower.apply({"params": params["vision"]}, augment.normalise(images)).image_embed


def encode_texts(params: Params, tokens: jax.Array, *, spec: ClipSpec) -> jax.Array:
    """Unit embeddings (B, E) of token ids (B, context_length)."""
    tower = TextTransformer(spec.text, spec.embed_dim)
    return l2_normalize(tower.apply({"params": params["text"]}, tokens))


def contrastive_loss(
    image_embeds: jax.Array,
    text_embeds: jax.Array,
    digits: jax.Array,
    *,
    scale: jax.Array | float,
    smoothing: float,
) -> jax.Array:
    """CLIP's symmetric loss, where many captions are true of an image.

    Every caption that names the image's digit is a target of equal weight, as is every image of the
    caption's digit the other way round (the multi-positive form of Khosla et al., 2020). A share
    `smoothing` of the weight is spread over all: web captions err, and without errors a scale of
    100 makes a small CLIP sure of everything.

    Args:
      image_embeds: (B, E), unit length.
      text_embeds: (B, E), unit length; row i is a caption of image i.
      digits: (B,) int, the digit of both.
      scale: factor on the cosines.
      smoothing: share of the targets' weight that is spread over the batch.
    """
    logits = scale * image_embeds @ text_embeds.T
    same = (digits[:, None] == digits[None]).astype(logits.dtype)
    targets = (1 - smoothing) * same / same.sum(axis=1, keepdims=True) + smoothing / len(digits)

    def cross_entropy(logits: jax.Array) -> jax.Array:
        return -(targets * jax.nn.log_softmax(logits, axis=1)).sum(axis=1).mean()

    return (cross_entropy(logits) + cross_entropy(logits.T)) / 2
