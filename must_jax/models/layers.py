"""The transformer that both towers share."""

from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from must_jax.models.attention import attention, plain_attention, split_heads
from must_jax.models.spec import TowerSpec
from must_jax.sharding import gathered, regathering, split_rows


def quick_gelu(x: jax.Array) -> jax.Array:
    """OpenAI's approximation of GELU, x * sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {
    "quick_gelu": quick_gelu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


# What the forward pass saves for the backward one: everything; the results of matrix products, so
# that norms, activations and residuals are computed anew; or each block's input alone.
REMAT = {
    "none": None,
    "light": jax.checkpoint_policies.save_only_these_names("qkv", "attended", "middle", "hidden"),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def l2_normalize(x: jax.Array) -> jax.Array:
    """`x` at unit length along its last axis; a zero vector stays zero, with finite gradients."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def layer_norm(*, eps: float, dtype: Any, name: str | None = None) -> nn.LayerNorm:
    """LayerNorm with the two-pass variance: the one-pass form cancels in float32."""
    return nn.LayerNorm(epsilon=eps, dtype=dtype, use_fast_variance=False, name=name)


class Projection(nn.Module):
    """Kernel and bias from or to heads, with the heads side by side: matrices for the compiler.

    Attributes:
      shape: of the kernel as it is kept, (W, 3, heads, D) or (heads, D, W).
      num_inputs: leading axes that are contracted.
      dtype: of what is given.
    """

    shape: tuple[int, ...]
    num_inputs: int
    dtype: Any

    @nn.compact
    def __call__(self, *flat: int) -> tuple[jax.Array, jax.Array]:
        """The kernel in the shape `flat`, and the bias in that of its outputs."""
        axes = range(len(self.shape))
        inputs, outputs = tuple(axes[: self.num_inputs]), tuple(axes[self.num_inputs :])
        initial = nn.initializers.lecun_normal(in_axis=inputs, out_axis=outputs)
        kernel = self.param("kernel", initial, self.shape)
        bias = self.param("bias", nn.initializers.zeros, self.shape[self.num_inputs :])
        return kernel.reshape(flat).astype(self.dtype), bias.reshape(flat[1:]).astype(self.dtype)


class Attention(nn.Module):
    """Multi-head self-attention over (B, T, W), query, key and value in one projection."""

    num_heads: int
    is_causal: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, rows: jax.Array | None = None) -> jax.Array:
        width, head_dim = x.shape[-1], x.shape[-1] // self.num_heads
        heads = (self.num_heads, head_dim)
        kernel, bias = Projection((width, 3, *heads), 1, self.dtype, name="qkv")(width, 3, width)
        if rows is not None:
            query = checkpoint_name(take_rows(x, rows) @ kernel[:, 0] + bias[0, None, None], "qkv")
            kv = jnp.einsum("btw,wio->ibto", x, kernel[:, 1:]) + bias[1:, None, None]
            key, value = checkpoint_name(kv, "qkv")
            attended = jax.nn.dot_product_attention(
                *(split_heads(part, head_dim) for part in (query, key, value))
            ).reshape(query.shape)
        else:
            qkv = jnp.einsum("btw,wio->ibto", x, kernel) + bias[:, None, None]
            qkv = checkpoint_name(qkv, "qkv")
            if self.is_causal:
                attended = plain_attention(qkv, head_dim=head_dim, is_causal=True)
            else:
                attended = attention(qkv, head_dim)
        attended = checkpoint_name(attended, "attended")
        kernel, bias = Projection((*heads, width), 2, self.dtype, name="out")(width, width)
        return attended @ kernel + bias[None, None]


class Mlp(nn.Module):
    """Two dense layers over the last axis."""

    dim: int
    activation: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = checkpoint_name(nn.Dense(self.dim, dtype=self.dtype, name="fc1")(x), "hidden")
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="fc2")(
            ACTIVATIONS[self.activation](hidden)
        )


class Block(nn.Module):
    """One pre-norm transformer layer over (B, T, W).

    With `rows` (B, S) int, tokens other than those are attended to but not computed: (B, S, W).
    """

    spec: TowerSpec
    is_causal: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, rows: jax.Array | None = None) -> jax.Array:
        spec = self.spec
        norm_1 = layer_norm(eps=spec.layer_norm_eps, dtype=self.dtype, name="ln_1")
        attend = Attention(spec.num_heads, self.is_causal, self.dtype, name="attn")
        norm_2 = layer_norm(eps=spec.layer_norm_eps, dtype=self.dtype, name="ln_2")
        mlp = Mlp(spec.mlp_dim, spec.activation, self.dtype, name="mlp")
        attended = attend(norm_1(x), rows)
        x = checkpoint_name((x if rows is None else take_rows(x, rows)) + attended, "middle")
        return x + mlp(norm_2(x))


def take_rows(x: jax.Array, rows: jax.Array) -> jax.Array:
    """The tokens (B, S, W) of x (B, T, W) at rows (B, S), which are different ones."""

    def take(x: jax.Array, rows: jax.Array) -> jax.Array:
        return x.at[rows].get(unique_indices=True, mode="promise_in_bounds")

    return jax.vmap(take)(x, rows)


def run_blocks(
    module: nn.Module,
    x: jax.Array,
    *,
    spec: TowerSpec,
    is_causal: bool,
    rows: jax.Array | None = None,
    remat: str = "none",
    unroll: bool = False,
) -> jax.Array:
    """Runs x (B, T, W) through `spec.depth` blocks, whose parameters are `module`'s `blocks`.

    Every leaf carries the layers on its leading axis, so that one compiled body serves all of them
    and a layer-wise rate is one vector.

    Args:
      module: the tower.
      x: the tokens.
      spec: the tower's.
      is_causal: a token attends to none after it.
      rows: (B, S) int, the tokens that are needed behind the last block; None: all.
      remat: what the backward pass computes anew, of `REMAT`.
      unroll: a body for each layer: slower to compile.

    Returns:
      (B, T, W), or (B, S, W) with `rows`.
    """
    block = Block(spec, is_causal, x.dtype, parent=None)

    def init(rng: jax.Array) -> Any:
        keys = jax.random.split(rng, spec.depth)
        return jax.vmap(lambda key: block.init(key, x)["params"])(keys)

    def run(x: jax.Array, layer: Any, rows: jax.Array | None = None) -> jax.Array:
        params = gathered(layer, layer=True, dtype=x.dtype)
        x = cast(jax.Array, block.apply({"params": params}, split_rows(x), rows))
        return split_rows(x)

    policy = regathering(REMAT[remat])
    if policy is not None:
        run = jax.checkpoint(run, prevent_cse=unroll, policy=policy)
    # At every call `param` traces `init` anew, to compare shapes, which loading has done already.
    is_there = module.has_variable("params", "blocks")
    stack = module.get_variable("params", "blocks") if is_there else module.param("blocks", init)
    last = spec.depth if rows is None else spec.depth - 1
    x, _ = jax.lax.scan(
        lambda x, layer: (run(x, layer), None),
        x,
        jax.tree.map(lambda leaf: leaf[:last], stack),
        unroll=max(last, 1) if unroll else 1,
    )
    if rows is None:
        return x
    return run(x, jax.tree.map(lambda leaf: leaf[last], stack), rows)
