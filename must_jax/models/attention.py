"""Self-attention whose scores never reach main memory on a TPU.

A ViT's sequence is short: query, key and value of one image fit on the chip, and the backward pass
computes the scores anew from them (Dao et al., 2022, without tiles along the sequence). Elsewhere
the compiler's own attention runs, and saves as little.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from must_jax.sharding import ROWS, num_row_shards

VMEM = 14 * 2**20  # bytes on the chip for a kernel; the smallest chip, a v4, has 16 MiB
PARALLEL = pltpu.CompilerParams(dimension_semantics=("parallel", "parallel"))
QKV = PartitionSpec(None, ROWS, None, "model")
HEADS = PartitionSpec(ROWS, None, "model")
LANES = 128  # the width of a register: blocks are that wide, or all of an array


def plain_attention(qkv: jax.Array, *, head_dim: int, is_causal: bool = False) -> jax.Array:
    """softmax(query key' / sqrt(D)) value, by XLA; softmax in float32.

    Args:
      qkv: (3, B, T, W), query, key and value, W being heads times D.
      head_dim: D.
      is_causal: a token attends to none after it.

    Returns:
      (B, T, W).
    """
    query, key, value = (split_heads(x, head_dim) for x in qkv)
    heads = jax.nn.dot_product_attention(query, key, value, is_causal=is_causal)
    return heads.reshape(qkv.shape[1:])


def split_heads(x: jax.Array, head_dim: int) -> jax.Array:
    """(B, T, W) as (B, T, heads, head_dim)."""
    return x.reshape(*x.shape[:-1], -1, head_dim)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def attention(qkv: jax.Array, head_dim: int) -> jax.Array:
    """`plain_attention` without a mask, of which the backward pass needs `qkv` alone."""
    return _run(qkv, head_dim=head_dim)


def _attention_forward(qkv: jax.Array, head_dim: int) -> tuple[jax.Array, jax.Array]:
    return _run(qkv, head_dim=head_dim), qkv


def _attention_backward(head_dim: int, qkv: jax.Array, grad: jax.Array) -> tuple[jax.Array]:
    def plain(qkv: jax.Array, grad: jax.Array) -> jax.Array:
        _, pull = jax.vjp(functools.partial(plain_attention, head_dim=head_dim), qkv)
        return pull(grad)[0]

    if not _has_kernel(qkv, head_dim):
        return (plain(qkv, grad),)
    kernel = per_device(functools.partial(attention_backward, head_dim=head_dim), QKV, QKV, HEADS)
    return (jax.lax.platform_dependent(qkv, grad, tpu=kernel, default=plain),)


attention.defvjp(_attention_forward, _attention_backward)


def _run(qkv: jax.Array, *, head_dim: int) -> jax.Array:
    plain = functools.partial(plain_attention, head_dim=head_dim)
    if not _has_kernel(qkv, head_dim):
        return plain(qkv)
    kernel = per_device(functools.partial(attention_forward, head_dim=head_dim), HEADS, QKV)
    return jax.lax.platform_dependent(qkv, tpu=kernel, default=plain)


def _has_kernel(qkv: jax.Array, head_dim: int) -> bool:
    """Whether a TPU may run the kernels: they have to be told how a mesh splits the arrays."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or qkv.shape[1] % num_row_shards(mesh):
        return False
    local = (*qkv.shape[:3], qkv.shape[3] // mesh.shape["model"])
    return kernel_width(local, qkv.dtype, head_dim=head_dim) > 0


def per_device(kernel: Any, out: PartitionSpec, *inputs: PartitionSpec) -> Any:
    """A kernel that runs on each device's part of the arrays."""
    return jax.shard_map(kernel, in_specs=inputs, out_specs=out, check_vma=False)


def kernel_width(shape: tuple[int, ...], dtype: Any, *, head_dim: int) -> int:
    """How many of the W columns of (3, B, T, W) a kernel takes at a time; 0: it can't."""
    tokens, width = shape[2:]
    for parts in range(1, width // head_dim + 1):
        columns = width // parts
        aligned = columns == width or columns % LANES == 0
        if width % parts == 0 and columns % head_dim == 0 and aligned:
            # The backward kernel's seven arrays, twice for overlap, and some of a head's scores.
            arrays = 2 * 7 * tokens * columns * jnp.dtype(dtype).itemsize
            if arrays + 5 * 4 * tokens * (tokens + LANES) <= VMEM:
                return columns
    return 0


def attention_forward(qkv: jax.Array, *, head_dim: int, interpret: bool = False) -> jax.Array:
    """`plain_attention` as a TPU kernel: one image at a time, head after head."""
    _, batch, tokens, width = qkv.shape
    columns = kernel_width(qkv.shape, qkv.dtype, head_dim=head_dim)

    def kernel(qkv_ref: Any, out_ref: Any) -> None:
        for start in range(0, columns, head_dim):
            head = pl.ds(start, head_dim)
            query, key, value = (qkv_ref[i, 0, :, head] for i in range(3))
            probs = _softmax(_dot(query, key, 1, 1) / math.sqrt(head_dim))
            out = _dot(probs.astype(value.dtype), value, 1, 0)
            out_ref[0, :, head] = out.astype(out_ref.dtype)

    return pl.pallas_call(
        kernel,
        grid=(batch, width // columns),
        in_specs=[pl.BlockSpec((3, 1, tokens, columns), lambda i, j: (0, i, 0, j))],
        out_specs=pl.BlockSpec((1, tokens, columns), lambda i, j: (i, 0, j)),
        out_shape=jax.ShapeDtypeStruct((batch, tokens, width), qkv.dtype),
        cost_estimate=_cost(qkv, products=2, arrays=4),
        compiler_params=PARALLEL,
        interpret=interpret,
    )(qkv)


def attention_backward(
    qkv: jax.Array, grad: jax.Array, *, head_dim: int, interpret: bool = False
) -> jax.Array:
    """The gradient (3, B, T, W) for `qkv`, from that for `plain_attention`'s result."""
    _, batch, tokens, width = qkv.shape
    columns = kernel_width(qkv.shape, qkv.dtype, head_dim=head_dim)

    def kernel(qkv_ref: Any, grad_ref: Any, out_ref: Any) -> None:
        for start in range(0, columns, head_dim):
            head = pl.ds(start, head_dim)
            query, key, value = (qkv_ref[i, 0, :, head] for i in range(3))
            grad = grad_ref[0, :, head]
            probs = _softmax(_dot(query, key, 1, 1) / math.sqrt(head_dim))
            grad_probs = _dot(grad, value, 1, 1)
            centred = grad_probs - jnp.sum(probs * grad_probs, axis=-1, keepdims=True)
            scores = (probs * centred / math.sqrt(head_dim)).astype(query.dtype)
            for i, grad_of in enumerate(
                (
                    _dot(scores, key, 1, 0),
                    _dot(scores, query, 0, 0),
                    _dot(probs.astype(grad.dtype), grad, 0, 0),
                )
            ):
                out_ref[i, 0, :, head] = grad_of.astype(out_ref.dtype)

    three = pl.BlockSpec((3, 1, tokens, columns), lambda i, j: (0, i, 0, j))
    return pl.pallas_call(
        kernel,
        grid=(batch, width // columns),
        in_specs=[three, pl.BlockSpec((1, tokens, columns), lambda i, j: (i, 0, j))],
        out_specs=three,
        out_shape=jax.ShapeDtypeStruct(qkv.shape, qkv.dtype),
        cost_estimate=_cost(qkv, products=5, arrays=7),
        compiler_params=PARALLEL,
        interpret=interpret,
    )(qkv, grad)


def _dot(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
    """The product over an axis of each, float32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dims = (((axis_a,), (axis_b,)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision, preferred_element_type=jnp.float32)


def _softmax(scores: jax.Array) -> jax.Array:
    powers = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return powers / jnp.sum(powers, axis=-1, keepdims=True)


def _cost(qkv: jax.Array, *, products: int, arrays: int) -> pl.CostEstimate:
    _, batch, tokens, width = qkv.shape
    return pl.CostEstimate(
        flops=products * 2 * batch * tokens**2 * width,
        bytes_accessed=arrays * batch * tokens * width * qkv.dtype.itemsize,
        transcendentals=0,
    )
