"""The optimizer against torch's AdamW, and the schedules against their formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from must_jax import optimizer

DEPTH = 3


def make_params():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "patch_embed": {"kernel": normal(6, 4), "bias": normal(4)},
        "class_embed": normal(4),
        "pos_embed": normal(5, 4),
        "mask_token": normal(1, 1, 4),
        "ln_pre": {"scale": normal(4), "bias": normal(4)},
        "blocks": {
            "mlp": {"fc1": {"kernel": normal(DEPTH, 4, 8), "bias": normal(DEPTH, 8)}},
            "attn": {"qkv": {"bias": normal(DEPTH, 3, 2, 2)}},
        },
        "pool": {
            "probe": normal(1, 1, 4),
            "ln_post": {"scale": normal(4)},
            "query": {"kernel": normal(4, 2, 2), "bias": normal(2, 2)},
        },
        "ln_patch": {"scale": normal(4)},
        "decoder": {"kernel": normal(4, 12), "bias": normal(12)},
        "proj": normal(4, 3),
        "classifier": normal(3, 7),
    }


# (path, layer or None) -> (multiplier's exponent, decays), by hand from the method's text.
GROUPS = {
    "patch_embed/kernel": (4, True),
    "patch_embed/bias": (4, False),
    "class_embed": (4, False),
    "pos_embed": (4, True),
    "mask_token": (4, True),
    "ln_pre/scale": (4, False),
    "ln_pre/bias": (4, False),
    "blocks/mlp/fc1/kernel": ((3, 2, 1), True),
    "blocks/mlp/fc1/bias": ((3, 2, 1), False),
    "blocks/attn/qkv/bias": ((3, 2, 1), False),
    "pool/probe": (0, True),
    "pool/ln_post/scale": (0, False),
    "pool/query/kernel": (0, True),
    "pool/query/bias": (0, False),
    "ln_patch/scale": (0, False),
    "decoder/kernel": (0, True),
    "decoder/bias": (0, False),
    "proj": (0, True),
    "classifier": (0, True),
}


def flat(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


@pytest.mark.parity
def test_updates_match_torch_adamw_with_a_group_a_layer():
    params = make_params()
    assert set(flat(params)) == set(GROUPS)
    steps, rate, decay, layer_decay = 4, 0.1, 0.05, 0.65
    schedule = optimizer.cosine_schedule(
        learning_rate=rate, min_learning_rate=1e-3, batch_size=256, num_steps=steps
    )
    transform = optimizer.make_optimizer(
        params, schedule=schedule, weight_decay=decay, layer_decay=layer_decay
    )
    state = transform.init(params)

    tensors, groups = {}, []
    for name, leaf in flat(params).items():
        exponents, decays = GROUPS[name]
        layers = enumerate(exponents) if isinstance(exponents, tuple) else [(..., exponents)]
        for layer, exponent in layers:
            tensor = torch.nn.Parameter(torch.tensor(np.asarray(leaf[layer])))
            tensors[name, layer] = tensor
            scale = layer_decay**exponent
            groups.append(
                {"params": [tensor], "scale": scale, "weight_decay": decay if decays else 0.0}
            )
    reference = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.999), eps=1e-8)

    rng = np.random.default_rng(1)
    for step in range(steps):
        grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
        updates, state = transform.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        for (name, layer), tensor in tensors.items():
            tensor.grad = torch.tensor(np.asarray(flat(grads)[name][layer]))
        for group in reference.param_groups:
            low = 1e-3 + (rate - 1e-3) / 2 * (1 + math.cos(math.pi * step / steps))
            group["lr"] = low * group["scale"]
        reference.step()
    for (name, layer), tensor in tensors.items():
        # optax's float32 bias correction is off by up to 3e-5 of an update of at most the rate.
        np.testing.assert_allclose(
            flat(params)[name][layer],
            tensor.detach().numpy(),
            rtol=0,
            atol=steps * rate * 3e-5,
            err_msg=name,
        )


def test_cosine_schedule_starts_high_ends_low_and_grows_with_the_batch():
    schedule = optimizer.cosine_schedule(
        learning_rate=2e-5, min_learning_rate=1e-6, batch_size=1024, num_steps=10
    )
    np.testing.assert_allclose(schedule(0), 8e-5, rtol=1e-6)
    np.testing.assert_allclose(schedule(5), 4.2e-5, rtol=1e-6)
    np.testing.assert_allclose(schedule(10), 4e-6, rtol=1e-6)


def test_ema_decay_is_a_line_and_then_constant():
    schedule = optimizer.ema_decay_schedule(initial=0.99, final=0.9998, warmup_steps=4)
    expected = [0.99 + (0.9998 - 0.99) * min(1, i / 4) for i in range(7)]
    np.testing.assert_allclose([schedule(i) for i in range(7)], expected, rtol=1e-6)


def test_ema_decay_without_warm_up_is_constant():
    schedule = optimizer.ema_decay_schedule(initial=0.9, final=0.99, warmup_steps=0)
    np.testing.assert_allclose([schedule(i) for i in range(3)], 0.99)
