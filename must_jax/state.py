"""Everything that a training run carries from step to step."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from must_jax.models import VisionTransformer
from must_jax.models.vit import resample_pos_embed

Params = dict[str, Any]


@flax.struct.dataclass
class TrainState:
    """The state of a run.

    Attributes:
      step: () int32, steps done.
      params: the student's parameters.
      teacher_params: their exponential moving average.
      opt_state: the optimizer's.
      mean_log_probs: (K,), logarithm of the mean prediction in this epoch; zeros at its start.
    """

    step: jax.Array
    params: Params
    teacher_params: Params
    opt_state: optax.OptState
    mean_log_probs: jax.Array


def init_params(model: VisionTransformer, rng: jax.Array) -> Params:
    """The student's parameters, drawn at random."""
    spec = model.spec
    images = jnp.zeros((1, spec.image_size, spec.image_size, 3))
    return model.init(rng, images, jnp.zeros((1, 1), jnp.int32))["params"]


def init_student(
    model: VisionTransformer, clip_params: Params, classifier: jax.Array, rng: jax.Array
) -> Params:
    """The student before its first step: the image tower, the text classifier, fresh heads.

    Args:
      model: the tower, with `num_classes` set.
      clip_params: the image tower of a converted checkpoint, of any image size.
      classifier: (E, K), from `zero_shot.build_classifier`.
      rng: key of `mask_token` and `decoder`.
    """

    @jax.jit
    def init_heads(rng: jax.Array) -> Params:
        # Nothing else of it is computed, or compiled.
        params = init_params(model, rng)
        return {name: params[name] for name in params.keys() - {*clip_params, "classifier"}}

    pos_embed = resample_pos_embed(
        clip_params["pos_embed"],
        grid_size=model.spec.grid_size,
        has_class_token=model.spec.has_class_token,
    )
    return {**init_heads(rng), **clip_params, "pos_embed": pos_embed, "classifier": classifier}


def init_state(params: Params, *, optimizer: optax.GradientTransformation) -> TrainState:
    """The state at step 0. The teacher starts as a copy: donation forbids that they share."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        teacher_params=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        mean_log_probs=jnp.zeros(params["classifier"].shape[1]),
    )


def state_shapes(params: Params, *, optimizer: optax.GradientTransformation) -> TrainState:
    """Shapes and types of the state; those of the parameters are enough to tell."""
    return jax.eval_shape(functools.partial(init_state, optimizer=optimizer), params)
