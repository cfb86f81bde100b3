"""A little state, and checkpoints of it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from must_jax import sharding
from must_jax.checkpoint import restore_latest
from must_jax.checkpoint_writer import Checkpoints
from must_jax.state import init_state, state_shapes

OPTIMIZER = optax.scale_by_adam()
NOTES = {"seconds": 12.5, "pending": [{"loss": 0.1}], "failed_records": [3]}


def make_state(step):
    rng = np.random.default_rng(step)
    params = {
        "blocks": {"fc1": {"kernel": rng.normal(size=(2, 64, 48)).astype(np.float32)}},
        "classifier": rng.normal(size=(16, 8)).astype(np.float32),
    }
    state = init_state(params, optimizer=OPTIMIZER)
    return dataclasses.replace(state, step=jnp.int32(step))


def on(mesh, state):
    return sharding.put(state, sharding.state_shardings(mesh, state))


def save(workdir, steps, *, to_keep=9, chosen=()):
    mesh = sharding.make_mesh(data=2, fsdp=4)
    checkpoints = Checkpoints(str(workdir), to_keep=to_keep, step=0)
    for step in steps:
        checkpoints.save(on(mesh, make_state(step)), step=step, notes=NOTES, chosen=chosen)
    assert checkpoints.finish() is None
    checkpoints.close()


def read(workdir, mesh):
    shapes = jax.eval_shape(functools.partial(make_state, 1))
    like = state_shapes(shapes.params, optimizer=OPTIMIZER)
    return restore_latest(str(workdir), like, shardings=sharding.state_shardings(mesh, like))


def assert_equal(state, expected):
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)
