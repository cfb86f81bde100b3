"""AdamW with layer-wise rates, and the schedules of learning rate and EMA decay."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

BASE_BATCH_SIZE = 256  # the batch for which the recipes state their rates
# Parameters with one axis in CLIP's and SigLIP's layouts, by the last part of their path. Both
# mask_token and SigLIP's probe have three.
UNDECAYED = frozenset({"bias", "scale", "class_embed"})
LOWEST_GROUP = frozenset({"patch_embed", "class_embed", "pos_embed", "mask_token", "ln_pre"})


def cosine_schedule(
    *, learning_rate: float, min_learning_rate: float, batch_size: int, num_steps: int
) -> optax.Schedule:
    """Learning rate at step i: half a cosine from `learning_rate` to `min_learning_rate`.

    Both are stated for a batch of 256 and grow in proportion to the global batch. No warm-up.
    """
    scale = batch_size / BASE_BATCH_SIZE
    high, low = learning_rate * scale, min_learning_rate * scale

    def schedule(step: jax.Array) -> jax.Array:
        return low + (high - low) / 2 * (1 + jnp.cos(jnp.pi * step / num_steps))

    return schedule


def ema_decay_schedule(*, initial: float, final: float, warmup_steps: int) -> optax.Schedule:
    """The teacher's decay after step i, counted from 0: a line to `final`, which then stays."""
    if warmup_steps == 0:
        return optax.constant_schedule(final)
    return optax.linear_schedule(initial, final, warmup_steps)


def decay_mask(params: Any) -> Any:
    """True at the leaves that weight decay shrinks: all but biases, norms and the class token."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key not in UNDECAYED, params)


def layer_rates(params: Any, *, layer_decay: float) -> Any:
    """The factor on the learning rate of every leaf of the image tower (BEiT's layer decay).

    A leaf under `blocks` has its layers on the leading axis and gets a factor for each.

    Returns:
      A tree like `params`, of scalars and of arrays that broadcast against their leaf.
    """
    depth = jax.tree.leaves(params["blocks"])[0].shape[0]
    rates = np.asarray(layer_decay ** jnp.arange(depth, 0, -1, dtype=jnp.float32))

    def rate(path: tuple[Any, ...], leaf: jax.Array) -> Any:
        if path[0].key == "blocks":
            return rates.reshape(-1, *[1] * (leaf.ndim - 1))
        return layer_decay ** (depth + 1 if path[0].key in LOWEST_GROUP else 0)

    return jax.tree.map_with_path(rate, params)


def scale_by_tree(factors: Any) -> optax.GradientTransformation:
    """Multiplies each update by its factor."""
    return optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, factors))


def make_optimizer(
    params: Any, *, schedule: optax.Schedule, weight_decay: float, layer_decay: float
) -> optax.GradientTransformation:
    """AdamW as method and recipes state it: the layer's factor scales rate and decay alike.

    Args:
      params: the student's parameters or their shapes; only the structure and shapes are read.
      schedule: learning rate of a step.
      weight_decay: decoupled decay, before the rate.
      layer_decay: factor on the rate from one layer to the one below it.
    """
    return optax.chain(
        optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
        optax.add_decayed_weights(weight_decay, mask=decay_mask),
        scale_by_tree(layer_rates(params, layer_decay=layer_decay)),
        optax.scale_by_learning_rate(schedule),
    )


def at_step(opt_state: optax.OptState, step: jax.Array) -> optax.OptState:
    """`make_optimizer`'s state with the schedule at `step`, which skipped steps count in.

    They don't count in Adam's moments, whose number of gradients `opt_state` holds too.
    """
    return optax.tree.set(
        opt_state, lambda path, _: path[-1].tuple_name == "ScaleByScheduleState", count=step
    )
