"""Fields that change a step's memory and time, and not what it computes, beyond rounding.

The golden run's first step is the reference: tests/test_golden.py compares it with the published
implementation, so that what agrees with it here agrees with that too.
"""

import dataclasses
import functools

import golden_numbers as golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from must_jax import sharding
from must_jax.compile import first_state, jit_train_step
from must_jax.state import init_state
from must_jax.train_step import compute_losses, in_parts, masked_patches, whole

# The order of float32 sums differs, as between meshes (tests/test_train_step.py).
RTOL = 1e-5


def losses_and_gradients(name, *, grad_accumulation=1, **options):
    state, keywords = golden.setup(name)
    model = keywords["model"].clone(**options)
    method = dataclasses.replace(keywords["method"], grad_accumulation=grad_accumulation)
    keywords = keywords | {"model": model, "method": method}
    rest = golden.loss_keywords(state, keywords, golden.batch(name, 0))
    # As in the midst of an epoch, for the moving average.
    rest["previous_log_probs"] = jnp.full_like(state.mean_log_probs, -1.0 - np.log(520))
    compute = functools.partial(compute_losses, **rest)
    (_, (_, metrics)), grads = jax.jit(jax.value_and_grad(compute, has_aux=True))(state.params)
    return jax.device_get((metrics, grads))


@functools.cache
def plain(name):
    return losses_and_gradients(name)


def assert_same(found, expected):
    for name, value in expected[0].items():
        np.testing.assert_allclose(found[0][name], value, rtol=RTOL, err_msg=name)
    for (path, ours), theirs in zip(
        jax.tree.leaves_with_path(found[1]), jax.tree.leaves(expected[1]), strict=True
    ):
        # A few float32 roundings of the largest terms.
        atol = 2e-5 * np.abs(theirs).max() + 1e-7
        np.testing.assert_allclose(
            ours, theirs, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path)
        )


@pytest.mark.parametrize("name", ["k10", "k520"])
@pytest.mark.parametrize(
    "options",
    [
        {"remat": "light"},
        {"remat": "full"},
        {"unroll": True},
        {"remat": "light", "unroll": True},
        {"grad_accumulation": 2},
        {"grad_accumulation": 8},
        {"grad_accumulation": 4, "remat": "light"},
    ],
    ids=str,
)
def test_options_change_neither_losses_nor_gradients(name, options):
    assert_same(losses_and_gradients(name, **options), plain(name))


@pytest.mark.parametrize(("data", "fsdp", "grad_accumulation"), [(1, 4, 2), (2, 1, 4)])
def test_a_step_with_a_split_state_is_the_published_one(data, fsdp, grad_accumulation):
    mesh = sharding.make_mesh(data=data, fsdp=fsdp, devices=jax.devices()[: data * fsdp])
    state, keywords = golden.setup("k10")
    method = dataclasses.replace(keywords["method"], grad_accumulation=grad_accumulation)
    keywords = keywords | {"method": method}
    init = functools.partial(init_state, optimizer=keywords["optimizer"])
    state = first_state(mesh, state.params, init=init)
    batch = sharding.to_mesh(jax.device_get(golden.batch("k10", 0)), mesh)
    step = jit_train_step(mesh, state.params, **keywords)
    _, metrics = step(state, batch)
    reference = golden.load("k10_main")
    for ours, theirs in [("self_train", "st"), ("fair", "fair"), ("mim", "mim"), ("align",) * 2]:
        expected = reference[f"steps/loss_{theirs}"][0]
        np.testing.assert_allclose(metrics[f"loss_{ours}"], expected, rtol=RTOL)


def test_bfloat16_stays_near_the_published_numbers():
    """Arithmetic of 8 bits: a part in 256 a rounding, some tens of which stand behind a loss."""
    metrics, grads = losses_and_gradients("k10", dtype=jnp.bfloat16, remat="light")
    reference = golden.load("k10_main")
    for ours, theirs in [("fair", "fair"), ("mim", "mim"), ("align", "align")]:
        expected = reference[f"steps/loss_{theirs}"][0]
        np.testing.assert_allclose(metrics[f"loss_{ours}"], expected, rtol=0.02, err_msg=ours)
    for leaf in jax.tree.leaves(grads):
        assert leaf.dtype == np.float32
    flat = [
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (grads, plain("k10")[1])
    ]
    cosine = flat[0] @ flat[1] / (np.linalg.norm(flat[0]) * np.linalg.norm(flat[1]))
    assert cosine > 0.98


def test_parts_take_every_nth_row_and_come_back_in_order():
    rows = jnp.arange(12.0).reshape(6, 2)
    parts = in_parts(lambda x: (x, x[:, 0].sum()), 3, rows)
    np.testing.assert_array_equal(parts[1], [0 + 6, 2 + 8, 4 + 10])
    np.testing.assert_array_equal(whole(parts[0]), rows)


def test_masked_patches_are_the_places_in_the_mask():
    mask = np.array([[0, 1, 1, 0, 0, 1], [1, 0, 0, 1, 1, 0]], bool)
    np.testing.assert_array_equal(
        masked_patches(jnp.asarray(mask), num_masked=3), [np.flatnonzero(row) for row in mask]
    )
