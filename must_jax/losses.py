"""MUST's four losses (Li et al., 2023, sections 3.1 to 3.3), each a mean over the global batch."""

import jax
import jax.numpy as jnp
import optax

# From this number of classes on, one batch says too little of the class distribution, and the
# published implementation averages over batches.
MOVING_AVERAGE_CLASSES = 512
FAIRNESS_MOMENTUM = 0.5


def self_training_loss(
    logits: jax.Array, pseudo_labels: jax.Array, confident: jax.Array
) -> jax.Array:
    """Cross-entropy against the pseudo-labels, averaged over the confident samples.

    The paper's equation 2 divides by the batch; its published numbers come from dividing by the
    number of confident samples, as here.

    Args:
      logits: (B, K), the student's.
      pseudo_labels: (B,) int, the teacher's.
      confident: (B,) bool, the samples that count.

    Returns:
      A scalar; 0 with zero gradients where no sample is confident.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, pseudo_labels)
    return jnp.sum(losses, where=confident) / jnp.maximum(jnp.sum(confident), 1)


def mean_log_probs(logits: jax.Array) -> jax.Array:
    """Logarithm of the batch mean of softmax(logits (B, K)), as (K,); can't underflow."""
    log_probs = jax.nn.log_softmax(logits)
    return jax.nn.logsumexp(log_probs, axis=0) - jnp.log(logits.shape[0])


def moving_average_log_probs(log_probs: jax.Array, previous: jax.Array) -> jax.Array:
    """log(m * exp(previous) + (1 - m) * exp(log_probs)), gradient to `log_probs` (K,) alone."""
    return jnp.logaddexp(
        jax.lax.stop_gradient(previous) + jnp.log(FAIRNESS_MOMENTUM),
        log_probs + jnp.log(1 - FAIRNESS_MOMENTUM),
    )


def fairness_loss(log_probs: jax.Array) -> jax.Array:
    """Cross-entropy between the uniform prior and the mean prediction (equation 4).

    Args:
      log_probs: (K,), logarithm of the mean prediction. Where it is a moving average, the caller
        divides the loss by the share that the new batch has in it, to keep the gradient's size.
    """
    return -jnp.mean(log_probs)


def masked_image_modeling_loss(reconstruction: jax.Array, target: jax.Array) -> jax.Array:
    """L1 distance per masked pixel and colour (equation 5).

    Args:
      reconstruction: (B, M, 3 * p * p) of masked patches, channels ordered (colour, row, column).
      target: (B, M, 3 * p * p), the normalised strong view in the same order.

    Returns:
      A scalar; 0 where nothing is masked.
    """
    # A float: the size of a pod's batch exceeds 32 bits.
    return jnp.sum(jnp.abs(reconstruction - target)) / float(max(target.size, 1))


def alignment_loss(patch_embeds: jax.Array, image_embed: jax.Array) -> jax.Array:
    """Squared distance from masked patches to their image, mean over patches (equation 6).

    Args:
      patch_embeds: (B, M, E) of masked patches, unit length.
      image_embed: (B, E), unit length.

    Returns:
      A scalar; 0 where nothing is masked.
    """
    distance = jnp.sum(jnp.square(patch_embeds - image_embed[:, None]), axis=-1)
    return jnp.sum(distance) / float(max(distance.size, 1))
