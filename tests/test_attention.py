"""The attention kernel, interpreted, against torch and against the compiler's attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import NamedSharding

from must_jax import sharding
from must_jax.models import attention

# Tokens, width and head width; 13 and 197 fill no tile, 384 columns leave two kernels of a batch.
SHAPES = [(16, 128, 64), (13, 256, 64), (197, 128, 64), (9, 160, 80), (5, 384, 128)]


def draw(shape, *, dtype=np.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 1.5, shape), dtype)


def torch_attention(qkv, grad, head_dim):
    """Result and gradient by torch, float64."""
    qkv = torch.tensor(np.asarray(qkv, np.float64), requires_grad=True)
    query, key, value = (
        x.reshape(*x.shape[:2], -1, head_dim).transpose(1, 2) for x in qkv.unbind()
    )
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    out = out.transpose(1, 2).reshape(grad.shape)
    out.backward(torch.tensor(np.asarray(grad, np.float64)))
    return out.detach().numpy(), qkv.grad.numpy()


@pytest.mark.parity
@pytest.mark.parametrize(("tokens", "width", "head_dim"), SHAPES)
@pytest.mark.parametrize("path", ["kernel", "compiler"])
def test_value_and_gradient_are_torchs(tokens, width, head_dim, path):
    qkv, grad = draw((3, 2, tokens, width)), draw((2, tokens, width), seed=1)
    if path == "kernel":
        out = attention.attention_forward(qkv, head_dim=head_dim, interpret=True)
        by_qkv = attention.attention_backward(qkv, grad, head_dim=head_dim, interpret=True)
    else:
        out, pull = jax.vjp(lambda x: attention.attention(x, head_dim), qkv)
        by_qkv = pull(grad)[0]
    expected, by_expected = torch_attention(qkv, grad, head_dim)
    # Sums of some hundred float32 terms of order one to ten.
    np.testing.assert_allclose(out, expected, rtol=0, atol=5e-6)
    np.testing.assert_allclose(by_qkv, by_expected, rtol=0, atol=3e-5)


def test_bfloat16_rounds_products_and_not_the_softmax():
    qkv, grad = draw((3, 2, 13, 128), dtype=jnp.bfloat16), draw((2, 13, 128), dtype=jnp.bfloat16)
    out = attention.attention_forward(qkv, head_dim=64, interpret=True)
    by_qkv = attention.attention_backward(qkv, grad, head_dim=64, interpret=True)
    assert out.dtype == by_qkv.dtype == jnp.bfloat16
    expected, by_expected = torch_attention(qkv, grad, 64)
    # Probabilities and results are rounded to 8 bits, 2**-9 of themselves.
    for ours, theirs in ((out, expected), (by_qkv, by_expected)):
        difference = np.abs(np.asarray(ours, np.float64) - theirs)
        assert difference.max() <= 4 * 2**-9 * np.abs(theirs).max()


def test_every_device_runs_the_kernel_on_its_own_part():
    mesh = sharding.make_mesh(data=2, fsdp=2, model=2)
    qkv, grad = draw((3, 4, 13, 256)), draw((4, 13, 256), seed=1)

    def both(qkv, grad):
        with sharding.computing_on(mesh):
            kernels = [
                functools.partial(f, head_dim=64, interpret=True)
                for f in (attention.attention_forward, attention.attention_backward)
            ]
            forward = attention.per_device(kernels[0], attention.HEADS, attention.QKV)
            backward = attention.per_device(
                kernels[1], attention.QKV, attention.QKV, attention.HEADS
            )
            return forward(qkv), backward(qkv, grad)

    parts = (NamedSharding(mesh, attention.QKV), NamedSharding(mesh, attention.HEADS))
    out, by_qkv = jax.jit(both, in_shardings=parts)(qkv, grad)
    expected, pull = jax.vjp(functools.partial(attention.plain_attention, head_dim=64), qkv)
    np.testing.assert_allclose(out, expected, rtol=0, atol=5e-6)
    np.testing.assert_allclose(by_qkv, pull(grad)[0], rtol=0, atol=3e-5)


@pytest.mark.parametrize(
    ("tokens", "width", "head_dim", "columns"),
    [
        (197, 768, 64, 768),  # ViT-B/16
        (257, 1024, 64, 1024),  # ViT-L/14
        (577, 1024, 64, 256),  # ViT-L/14 at 336 pixels: some heads at a time
        (257, 1408, 88, 1408),  # ViT-g/14
        (729, 1152, 72, 0),  # So400m at 384 pixels: 72 columns fill no register
    ],
)
def test_what_a_kernel_takes_at_a_time(tokens, width, head_dim, columns):
    shape = (3, 8, tokens, width)
    found = attention.kernel_width(shape, jnp.bfloat16, head_dim=head_dim)
    assert found == columns
