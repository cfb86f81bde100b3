"""One step of an evaluation, or of prediction."""

import jax
import jax.numpy as jnp

from must_jax.models import VisionTransformer, encode
from must_jax.state import Params
from must_jax.train_step import Batch, normalize


def count_right(
    params: Params,
    batch: Batch,
    *,
    model: VisionTransformer,
    image_mean: tuple[float, float, float],
    image_std: tuple[float, float, float],
) -> jax.Array:
    """Of each class, how many valid images have the largest logit at it, and how many there are.

    An image with a logit of NaN has no largest one.

    Args:
      params: the student's or the teacher's.
      batch: `image` (B, R, R, 3) uint8, `label` (B,) int32, `valid` (B,) bool.

    Returns:
      (2, K) int32, over the global batch.
    """
    images = normalize(batch["image"], mean=image_mean, std=image_std)
    logits = encode(model, params, images).logits
    # argmax takes NaN for the largest.
    has_largest = ~jnp.isnan(jnp.max(logits, axis=-1))
    right = has_largest & (jnp.argmax(logits, axis=-1) == batch["label"])
    is_label = batch["label"][:, None] == jnp.arange(logits.shape[-1])[None]
    of_class = is_label & batch["valid"][:, None]
    return jnp.stack([jnp.sum(of_class & right[:, None], axis=0), jnp.sum(of_class, axis=0)])


def most_probable(
    params: Params,
    batch: Batch,
    *,
    model: VisionTransformer,
    image_mean: tuple[float, float, float],
    image_std: tuple[float, float, float],
    top_k: int,
) -> tuple[jax.Array, jax.Array]:
    """The classes with the largest logits of each image, the largest first.

    Of equal ones, the first comes first: that of all is what `count_right` compares with labels.

    Args:
      params: the student's or the teacher's.
      batch: `image` (B, R, R, 3) uint8, `valid` (B,) bool.

    Returns:
      Classes (B, top_k) int32, -1 where an image is not valid, and their probabilities.
    """
    images = normalize(batch["image"], mean=image_mean, std=image_std)
    logits = encode(model, params, images).logits
    largest, classes = jax.lax.top_k(logits, top_k)
    probabilities = jnp.exp(largest - jax.nn.logsumexp(logits, axis=-1, keepdims=True))
    return jnp.where(batch["valid"][:, None], classes, -1), probabilities
