"""The transformer that both towers share."""

from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

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


def l2_normalize(x: jax.Array) -> jax.Array:
    """`x` at unit length along its last axis; a zero vector stays zero, with finite gradients."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def layer_norm(*, eps: float, dtype: Any, name: str | None = None) -> nn.LayerNorm:
    """LayerNorm with the two-pass variance: the one-pass form cancels in float32."""
    return nn.LayerNorm(epsilon=eps, dtype=dtype, use_fast_variance=False, name=name)


class Attention(nn.Module):
    """Multi-head self-attention over (B, T, W), query, key and value in one projection."""

    num_heads: int
    is_causal: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        head_dim = x.shape[-1] // self.num_heads
        qkv = nn.DenseGeneral((3, self.num_heads, head_dim), dtype=self.dtype, name="qkv")(x)
        q, k, v = (qkv[:, :, i] for i in range(3))
        heads = jax.nn.dot_product_attention(q, k, v, is_causal=self.is_causal)
        return nn.DenseGeneral(x.shape[-1], axis=(-2, -1), dtype=self.dtype, name="out")(heads)


class Mlp(nn.Module):
    """Two dense layers over the last axis."""

    dim: int
    activation: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = nn.Dense(self.dim, dtype=self.dtype, name="fc1")(x)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="fc2")(
            ACTIVATIONS[self.activation](hidden)
        )


class Block(nn.Module):
    """One pre-norm transformer layer over (B, T, W)."""

    spec: TowerSpec
    is_causal: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        spec = self.spec
        norm_1 = layer_norm(eps=spec.layer_norm_eps, dtype=self.dtype, name="ln_1")
        attention = Attention(spec.num_heads, self.is_causal, self.dtype, name="attn")
        norm_2 = layer_norm(eps=spec.layer_norm_eps, dtype=self.dtype, name="ln_2")
        mlp = Mlp(spec.mlp_dim, spec.activation, self.dtype, name="mlp")
        x = x + attention(norm_1(x))
        return x + mlp(norm_2(x))


def run_blocks(module: nn.Module, x: jax.Array, *, spec: TowerSpec, is_causal: bool) -> jax.Array:
    """Runs x (B, T, W) through `spec.depth` blocks, whose parameters are `module`'s `blocks`.

    Every leaf carries the layers on its leading axis, so that one compiled body serves all of them
    and a layer-wise rate is one vector.
    """
    block = Block(spec, is_causal, x.dtype, parent=None)

    def init(rng: jax.Array) -> Any:
        keys = jax.random.split(rng, spec.depth)
        return jax.vmap(lambda key: block.init(key, x)["params"])(keys)

    def step(x: jax.Array, layer: Any) -> tuple[jax.Array, None]:
        params = gathered(layer, layer=True, dtype=x.dtype)
        return split_rows(cast(jax.Array, block.apply({"params": params}, split_rows(x)))), None

    policy = regathering()
    if policy is not None:
        step = jax.checkpoint(step, prevent_cse=False, policy=policy)
    x, _ = jax.lax.scan(step, x, module.param("blocks", init))
    return x
