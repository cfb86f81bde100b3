"""Parity with the published implementation, whole steps (tests/golden/README.md).

Tolerances: `noise/*` is how far the published implementation in float32 is from itself in float64.
Two float32 programs that sum in different orders differ by some multiples of it; NOISE is that
multiple, and the floor is a few units in the last place of the compared number, for the entries
whose recorded noise is zero by chance. optax computes Adam's bias correction in float32, where
1 - 0.999**i is off by up to 2**-24 / 0.001, half of which is the relative error of an update, and
an update is at most about the rate. The numbers may change only if the golden files do.
"""

import functools

import golden_numbers as golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from must_jax import sharding
from must_jax.compile import first_state, jit_train_step
from must_jax.models.layers import take_rows
from must_jax.state import init_state
from must_jax.train_step import compute_losses, masked_patches, mim_target, train_step

pytestmark = pytest.mark.parity

NOISE = 4
ULPS = 8 * np.finfo(np.float32).eps
LOSSES = {
    "loss_self_train": "loss_st",
    "loss_fair": "loss_fair",
    "loss_mim": "loss_mim",
    "loss_align": "loss_align",
    "loss": "loss",
}


def tolerance(noise, reference):
    return NOISE * noise + ULPS * np.abs(reference).max()


def take_steps(name, step, state, place=lambda batch: batch):
    """Takes all the steps; gives the states after each, on the host, and the metrics."""
    states, metrics = [jax.device_get(state)], []
    for i in range(len(golden.load(f"{name}_main")["steps/it"])):
        state, step_metrics = step(state, place(golden.batch(name, i)))
        states.append(jax.device_get(state))
        metrics.append(jax.device_get(step_metrics))
    return states, metrics


@functools.cache
def run(name):
    """`take_steps` on one device."""
    state, keywords = golden.setup(name)
    return take_steps(name, jax.jit(functools.partial(train_step, **keywords)), state)


@functools.cache
def run_on(name, sizes):
    """`take_steps` on a mesh."""
    mesh = sharding.make_mesh(**dict(zip(sharding.AXES, sizes, strict=True)))
    state, keywords = golden.setup(name)
    step = jit_train_step(mesh, state.params, **keywords)
    init = functools.partial(init_state, optimizer=keywords["optimizer"])
    state = first_state(mesh, state.params, init=init)
    return take_steps(
        name, step, state, lambda batch: sharding.to_mesh(jax.device_get(batch), mesh)
    )


def compare_losses(metrics, reference, step):
    for ours, theirs in LOSSES.items():
        expected = reference[f"steps/{theirs}"][step]
        atol = tolerance(reference[f"noise/steps/{theirs}"].max(), expected)
        np.testing.assert_allclose(metrics[ours], expected, rtol=0, atol=atol, err_msg=ours)


@pytest.mark.parametrize("name", ["k10", "k520"])
@pytest.mark.parametrize("step", range(5))
def test_losses_and_schedules(name, step):
    reference = golden.load(f"{name}_main")
    metrics = run(name)[1][step]
    compare_losses(metrics, reference, step)
    np.testing.assert_allclose(metrics["confident_fraction"], reference["steps/conf_ratio"][step])
    np.testing.assert_allclose(metrics["ema_decay"], reference["steps/ema_decay"][step], rtol=1e-7)
    np.testing.assert_allclose(metrics["learning_rate"], reference["lr_schedule"][step], rtol=4e-7)


@pytest.mark.parametrize("name", ["k10", "k520"])
@pytest.mark.parametrize("step", range(5))
def test_forward(name, step):
    reference = golden.load(f"{name}_main")
    state = run(name)[0][step]
    _, keywords = golden.setup(name)
    model, batch = keywords["model"], golden.batch(name, step)
    teacher = model.apply({"params": state.teacher_params}, batch["image_weak"])
    masked = masked_patches(batch["patch_mask"], num_masked=keywords["method"].num_masked)
    student = model.apply({"params": state.params}, batch["image_strong"], masked)
    reconstruction = mim_target(
        jnp.asarray(reference["steps/x_recon"][step].transpose(0, 2, 3, 1)), patch_size=8
    )
    for key, ours, expected in [
        ("teacher_logits", teacher.logits, reference["steps/teacher_logits"][step]),
        ("student_logits", student.logits, reference["steps/student_logits"][step]),
        ("x_recon", student.reconstruction, take_rows(reconstruction, masked)),
    ]:
        atol = tolerance(reference[f"noise/steps/{key}"].max(), expected)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=atol, err_msg=key)


def compare_trees(ours, theirs, *, noise_of, bias_correction):
    """Compares two trees leaf by leaf, in the published layout's terms."""
    for path, expected in jax.tree.leaves_with_path(theirs):
        value = functools.reduce(lambda tree, key: tree[key.key], path, ours)
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        value, expected = np.asarray(value), np.asarray(expected)
        if name.endswith("qkv/bias"):
            # The key's bias has no gradient in exact arithmetic: Adam makes steps of its noise.
            value, expected = value[:, [0, 2]], expected[:, [0, 2]]
        difference = np.abs(value - expected)
        atol = tolerance(noise_of(name), expected) + bias_correction
        # Adam flips the sign of near-zero gradients here and there: one in a thousand may be off.
        assert np.quantile(difference, 0.999) <= atol, name


def published_name(name):
    """The published name of a leaf, its block's number left as {}."""
    renamed = {
        "patch_embed/kernel": "conv1.weight",
        "class_embed": "class_embedding",
        "pos_embed": "positional_embedding",
        "mask_token": "mask_token_embedding",
        "decoder/kernel": "decoder.0.weight",
        "decoder/bias": "decoder.0.bias",
        "blocks/attn/qkv/kernel": "transformer.resblocks.{}.attn.in_proj_weight",
        "blocks/attn/qkv/bias": "transformer.resblocks.{}.attn.in_proj_bias",
        "blocks/attn/out/kernel": "transformer.resblocks.{}.attn.out_proj.weight",
        "blocks/attn/out/bias": "transformer.resblocks.{}.attn.out_proj.bias",
        "blocks/mlp/fc1/kernel": "transformer.resblocks.{}.mlp.c_fc.weight",
        "blocks/mlp/fc1/bias": "transformer.resblocks.{}.mlp.c_fc.bias",
        "blocks/mlp/fc2/kernel": "transformer.resblocks.{}.mlp.c_proj.weight",
        "blocks/mlp/fc2/bias": "transformer.resblocks.{}.mlp.c_proj.bias",
    }
    if name in renamed:
        return "model.visual." + renamed[name]
    name = name.replace("blocks/", "transformer.resblocks.{}.").replace("/scale", ".weight")
    return "model.visual." + name.replace("/bias", ".bias")


def recorded_noise(reference, prefix):
    def noise_of(name):
        suffix = "#qv" if name.endswith("qkv/bias") else "#p999"
        keys = {f"noise/{prefix}/{published_name(name).format(i)}{suffix}" for i in range(2)}
        return max(reference[key] for key in keys)

    return noise_of


def compare_parameters(name, state, *, tree, steps):
    ours = state.params if tree == "student" else state.teacher_params
    reference = golden.load(f"{name}_main")
    expected = golden.to_tree(golden.load(f"{name}_step{steps}"), f"{tree}/")
    prefix = f"{tree}_step{'1' if steps == 1 else 'N'}"
    updates = reference["lr_schedule"][:steps].sum()
    compare_trees(
        ours,
        expected,
        noise_of=recorded_noise(reference, prefix),
        bias_correction=updates * 2**-24 / (1 - 0.999) / 2,
    )


@pytest.mark.parametrize("name", ["k10", "k520"])
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("tree", ["student", "ema"])
def test_parameters(name, steps, tree):
    compare_parameters(name, run(name)[0][steps], tree=tree, steps=steps)


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2)])
def test_losses_and_parameters_on_a_mesh(sizes):
    states, metrics = run_on("k10", sizes)
    reference = golden.load("k10_main")
    for step in range(5):
        compare_losses(metrics[step], reference, step)
    for steps in (1, 5):
        for tree in ("student", "ema"):
            compare_parameters("k10", states[steps], tree=tree, steps=steps)


def gradients(name):
    """Our gradients at step 0, and the loss."""
    state, keywords = golden.setup(name)
    rest = golden.loss_keywords(state, keywords, golden.batch(name, 0))
    (loss, _), grads = jax.value_and_grad(compute_losses, has_aux=True)(state.params, **rest)
    return loss, grads


@pytest.mark.parametrize("name", ["k10", "k520"])
def test_gradients(name):
    reference = golden.load(f"{name}_main")
    _, grads = gradients(name)
    # The logits' rounding, a hundred times the embeddings', is common to all leaves: their noise
    # does not average out, and the norm is as uncertain as the leaf that it mostly is.
    largest = np.abs(reference["grad0/model.visual.classifier"]).max()
    rtol = NOISE * reference["noise/grads0/model.visual.classifier"] / largest
    assert rtol < 2e-5
    np.testing.assert_allclose(optax.tree.norm(grads), reference["grad_norm0"], rtol=rtol)
    # Only some gradients were recorded; the others stay NaN and are passed over.
    recorded = {
        key.replace("init/", "grad0/"): reference.get(
            key.replace("init/", "grad0/"), np.full_like(value, np.nan)
        )
        for key, value in reference.items()
        if key.startswith("init/")
    }
    compared = 0
    for path, expected in jax.tree.leaves_with_path(golden.to_tree(recorded, "grad0/")):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        value = functools.reduce(lambda tree, key: tree[key.key], path, grads)
        for layer in range(2) if name.startswith("blocks/") else [slice(None)]:
            theirs = expected[layer]
            if np.isnan(theirs).all():
                continue
            key = f"noise/grads0/{published_name(name).format(layer)}"
            # The recorded maximum is of one run; the gradient's own scale gives the floor.
            atol = tolerance(reference[key], theirs)
            np.testing.assert_allclose(value[layer], theirs, rtol=0, atol=atol, err_msg=name)
            compared += 1
    assert compared == sum(key.startswith("grad0/") for key in reference)


def test_no_confident_sample():
    """The published code ends with NaN here; all the other losses are recorded."""
    reference = golden.load("noconf_main")
    assert reference["ref_exited"]
    assert not reference["steps/conf_mask"].any()
    _, metrics = run("noconf")
    assert metrics[0]["loss_self_train"] == 0
    # No noise could be recorded for a run that exits: that of k10, of the same sizes, stands in.
    noise = golden.load("k10_main")
    for ours, theirs in LOSSES.items():
        if ours not in ("loss_self_train", "loss"):
            expected = reference[f"steps/{theirs}"][0]
            atol = tolerance(noise[f"noise/steps/{theirs}"].max(), expected)
            np.testing.assert_allclose(metrics[0][ours], expected, rtol=0, atol=atol)
    loss, grads = gradients("noconf")
    assert np.isfinite(loss)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run("noconf")[0][1]))
