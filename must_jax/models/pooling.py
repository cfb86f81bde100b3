"""How the image tower's tokens become embeddings: by CLIP's class token or SigLIP's attention.

Both pools offer the same two maps into the joint space, which share their parameters:
`image(tokens)`, from all tokens to one embedding, and `patches(tokens)`, from each patch's token to
an embedding of its own. Neither normalises.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from must_jax.models.layers import Mlp, layer_norm
from must_jax.models.spec import VisionSpec


class ClassTokenPool(nn.Module):
    """The class token has gathered the image: norm and projection (Radford et al., 2021)."""

    spec: VisionSpec
    embed_dim: int
    dtype: Any

    def setup(self) -> None:
        """Makes the layers."""
        width = self.spec.width
        self.ln_post = layer_norm(eps=self.spec.layer_norm_eps, dtype=self.dtype)
        self.proj = self.param("proj", nn.initializers.normal(width**-0.5), (width, self.embed_dim))

    def image(self, tokens: jax.Array) -> jax.Array:
        """The embedding (B, E) of all tokens (B, 1 + N, W), the class token being the first."""
        return self.ln_post(tokens[:, 0]) @ self.proj.astype(self.dtype)

    def patches(self, tokens: jax.Array) -> jax.Array:
        """The embeddings (B, N, E) of normed patch tokens (B, N, W), by the same projection."""
        return tokens @ self.proj.astype(self.dtype)


class AttentionPool(nn.Module):
    """A learned probe attends to the patches, a residual MLP follows (Zhai et al., 2023).

    The joint space has the tower's width.
    """

    spec: VisionSpec
    dtype: Any

    def setup(self) -> None:
        """Makes the layers."""
        spec = self.spec
        width, heads = spec.width, (spec.num_heads, spec.width // spec.num_heads)
        self.ln_post = layer_norm(eps=spec.layer_norm_eps, dtype=self.dtype)
        self.probe = self.param("probe", nn.initializers.normal(0.02), (1, 1, width))
        self.query = nn.DenseGeneral(heads, dtype=self.dtype)
        self.key = nn.DenseGeneral(heads, dtype=self.dtype)
        self.value = nn.DenseGeneral(heads, dtype=self.dtype)
        self.out = nn.DenseGeneral(width, axis=(-2, -1), dtype=self.dtype)
        self.ln = layer_norm(eps=spec.layer_norm_eps, dtype=self.dtype)
        self.mlp = Mlp(spec.mlp_dim, spec.activation, self.dtype)

    def image(self, tokens: jax.Array) -> jax.Array:
        """The embedding (B, W) of all tokens (B, N, W)."""
        tokens = self.ln_post(tokens)
        probe = jnp.broadcast_to(self.probe, (tokens.shape[0], 1, self.spec.width))
        attended = jax.nn.dot_product_attention(
            self.query(probe), self.key(tokens), self.value(tokens)
        )
        return self._finish(attended)[:, 0]

    def patches(self, tokens: jax.Array) -> jax.Array:
        """The embeddings (B, N, W) of normed patch tokens (B, N, W), each as if it were alone.

        Attention to a single token gives that token's value, whatever the probe.
        """
        return self._finish(self.value(tokens))

    def _finish(self, attended: jax.Array) -> jax.Array:
        x = self.out(attended)
        return x + self.mlp(self.ln(x))
