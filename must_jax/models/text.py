"""CLIP's text tower."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from must_jax.models.layers import layer_norm, run_blocks
from must_jax.models.spec import TextSpec


class TextTransformer(nn.Module):
    """CLIP's causal text transformer (Radford et al., 2021, section 2.4)."""

    spec: TextSpec
    embed_dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, token_ids: jax.Array) -> jax.Array:
        """Encodes token ids (B, context_length) to (B, E), not normalised."""
        spec = self.spec
        token_embed = self.param(
            "token_embed", nn.initializers.normal(0.02), (spec.vocab_size, spec.width)
        )
        pos_embed = self.param(
            "pos_embed", nn.initializers.normal(0.01), (spec.context_length, spec.width)
        )
        x = (token_embed[token_ids] + pos_embed[None]).astype(self.dtype)
        x = run_blocks(self, x, spec=spec, is_causal=True)
        x = layer_norm(eps=spec.layer_norm_eps, dtype=self.dtype, name="ln_final")(x)
        if spec.eot_token_id is None:
            end = jnp.argmax(token_ids, axis=-1)
        else:
            end = jnp.argmax(token_ids == spec.eot_token_id, axis=-1)
        pooled = x[jnp.arange(x.shape[0]), end]
        proj = self.param(
            "proj", nn.initializers.normal(spec.width**-0.5), (spec.width, self.embed_dim)
        )
        return pooled @ proj.astype(self.dtype)
