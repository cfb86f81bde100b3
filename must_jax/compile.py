"""The compiled steps: the same program for training, for a plan and for benchmarks."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from must_jax import sharding
from must_jax.eval_step import count_right, most_probable
from must_jax.models import VisionSpec
from must_jax.state import Params, TrainState, state_shapes
from must_jax.train_step import train_step


def batch_shapes(vision: VisionSpec, *, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The batch of `train_step`; of images without labels, `label` may be missing."""
    size = vision.image_size
    image = jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.uint8)
    return {
        "image_weak": image,
        "image_strong": image,
        "patch_mask": jax.ShapeDtypeStruct((batch_size, vision.num_patches), jnp.bool_),
        "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    }


def jit_train_step(mesh: Mesh, params: Params, **keywords: Any) -> Callable[..., Any]:
    """`train_step` for a mesh: `(state, batch) -> (state, metrics)`, the state being donated.

    The state is laid out by `sharding.state_shardings`, the batch by `sharding.batch_sharding`;
    `.lower` takes shapes of both as well.

    Args:
      mesh: of `sharding.make_mesh`.
      params: the student's parameters or their shapes.
      keywords: of `train_step`, from `Experiment.step_keywords`.
    """
    shapes = state_shapes(params, optimizer=keywords["optimizer"])
    state = sharding.state_shardings(mesh, shapes)
    return jax.jit(
        _on(mesh, train_step, **keywords),
        in_shardings=(state, sharding.batch_sharding(mesh)),
        out_shardings=(state, sharding.replicated(mesh)),
        donate_argnums=0,
    )


def jit_eval_step(mesh: Mesh, params: Params, **keywords: Any) -> Callable[..., jax.Array]:
    """`count_right` for a mesh: `(params, batch) -> counts`, which every device has.

    Args:
      mesh: of `sharding.make_mesh`.
      params: the parameters or their shapes.
      keywords: of `count_right`.
    """
    return _jit_inference(count_right, mesh, params, **keywords)


def jit_predict_step(mesh: Mesh, params: Params, **keywords: Any) -> Callable[..., Any]:
    """`most_probable` for a mesh: `(params, batch) -> (classes, probabilities)`, likewise.

    Args:
      mesh: of `sharding.make_mesh`.
      params: the parameters or their shapes.
      keywords: of `most_probable`.
    """
    return _jit_inference(most_probable, mesh, params, **keywords)


def _jit_inference(
    step: Callable[..., Any], mesh: Mesh, params: Params, **keywords: Any
) -> Callable[..., Any]:
    return jax.jit(
        _on(mesh, step, **keywords),
        in_shardings=(sharding.state_shardings(mesh, params), sharding.batch_sharding(mesh)),
        out_shardings=sharding.replicated(mesh),
    )


def _on(mesh: Mesh, step: Callable[..., Any], **keywords: Any) -> Callable[..., Any]:
    @functools.wraps(step)
    def on_mesh(*args: Any) -> Any:
        with sharding.computing_on(mesh):
            return step(*args, **keywords)

    return on_mesh


def first_state(mesh: Mesh, params: Params, *, init: Callable[[Params], TrainState]) -> TrainState:
    """`init(params)` on the mesh, of parameters that every process has whole."""
    on_mesh = sharding.put(params, sharding.state_shardings(mesh, params))
    shardings = sharding.state_shardings(mesh, jax.eval_shape(init, params))
    state = jax.jit(init, out_shardings=shardings)(on_mesh)
    # Without jit, out_shardings are ignored.
    return sharding.put(state, shardings)
