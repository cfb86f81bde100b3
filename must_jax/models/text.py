"""The text tower."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from must_jax.models.layers import layer_norm, run_blocks
from must_jax.models.spec import TextSpec


def pooled_positions(token_ids: jax.Array | np.ndarray, *, spec: TextSpec) -> jax.Array:
    """The position (B,) of each text (B, T) that stands for the whole."""
    ids = jnp.asarray(token_ids)
    if spec.pooling == "last_token":
        return jnp.full(ids.shape[0], ids.shape[1] - 1)
    if spec.eot_token_id is None:
        return jnp.argmax(ids, axis=-1)
    return jnp.argmax(ids == spec.eot_token_id, axis=-1)


class TextTransformer(nn.Module):
    """The text transformer of CLIP (Radford et al., 2021) or SigLIP (Zhai et al., 2023)."""

    spec: TextSpec
    embed_dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, token_ids: jax.Array) -> jax.Array:
        """Encodes token ids (B, context_length) to (B, E), not normalised.

        Padding is attended to like any token, except that a causal tower never sees what comes
        after the position it pools.
        """
        spec = self.spec
        token_embed = self.param(
            "token_embed", nn.initializers.normal(0.02), (spec.vocab_size, spec.width)
        )
        pos_embed = self.param(
            "pos_embed", nn.initializers.normal(0.01), (spec.context_length, spec.width)
        )
        x = (token_embed[token_ids] + pos_embed[None]).astype(self.dtype)
        x = run_blocks(self, x, spec=spec, is_causal=spec.is_causal)
        x = layer_norm(eps=spec.layer_norm_eps, dtype=self.dtype, name="ln_final")(x)
        pooled = x[jnp.arange(x.shape[0]), pooled_positions(token_ids, spec=spec)]
        proj = self.param(
            "proj", nn.initializers.normal(spec.width**-0.5), (spec.width, self.embed_dim)
        )
        embed = pooled @ proj.astype(self.dtype)
        if spec.proj_bias:
            proj_bias = self.param("proj_bias", nn.initializers.zeros, (self.embed_dim,))
            embed = embed + proj_bias[None].astype(self.dtype)
        return embed
