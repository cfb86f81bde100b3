"""A step of the method's shape as one writes it on flax's own layers, to compare programs with.

Every token runs through every block, layers are unrolled, attention is flax's, the gradient is
jax.grad's, the optimizer optax.adamw: what `google-research/big_vision`'s ViT does too.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from must_jax.models import VisionSpec


class Block(nn.Module):
    """A pre-norm layer of flax's parts."""

    spec: VisionSpec

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, T, W) to (B, T, W)."""
        half = {"dtype": jnp.bfloat16}
        heads = self.spec.num_heads
        y = nn.LayerNorm(**half)(x)
        x = x + nn.MultiHeadAttention(heads, **half)(y, y)
        y = nn.Dense(self.spec.mlp_dim, **half)(nn.LayerNorm(**half)(x))
        return x + nn.Dense(self.spec.width, **half)(nn.gelu(y))


class Vit(nn.Module):
    """A ViT with a classifier and a decoder of patches."""

    spec: VisionSpec
    embed_dim: int
    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array, mask: jax.Array) -> tuple[jax.Array, ...]:
        """Logits, patches' and images' embeddings, and pixels; `mask` (B, N)."""
        spec, patch = self.spec, self.spec.patch_size
        half = {"dtype": jnp.bfloat16}
        x = nn.Conv(spec.width, (patch, patch), (patch, patch), padding="VALID", **half)(images)
        x = x.reshape(x.shape[0], -1, spec.width)
        token = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, spec.width))
        x = jnp.where(mask[..., None], token.astype(x.dtype), x)
        start = self.param("class_token", nn.initializers.normal(0.02), (1, 1, spec.width))
        start = jnp.broadcast_to(start.astype(x.dtype), (x.shape[0], 1, spec.width))
        x = jnp.concatenate([start, x], axis=1)
        place = self.param("places", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        x = nn.LayerNorm(**half)(x + place.astype(x.dtype))
        for _ in range(spec.depth):
            x = Block(spec)(x)
        x = nn.LayerNorm(**half)(x)
        embeds = nn.Dense(self.embed_dim, use_bias=False, **half)(x).astype(jnp.float32)
        embeds /= jnp.linalg.norm(embeds, axis=-1, keepdims=True)
        logits = 100 * nn.Dense(self.num_classes, use_bias=False)(embeds[:, 0])
        pixels = nn.Dense(3 * patch**2, **half)(x[:, 1:]).astype(jnp.float32)
        return logits, embeds[:, 1:], embeds[:, :1], pixels


def make_step(model: Vit, optimizer: optax.GradientTransformation) -> Any:
    """`(state, batch) -> (state, loss)` for state (params, teacher, optimizer's)."""

    def losses(params: Any, teacher_logits: jax.Array, images: jax.Array, mask: jax.Array) -> Any:
        logits, patches, image, pixels = model.apply({"params": params}, images, mask)
        confident = jnp.max(jax.nn.softmax(teacher_logits), -1) > 0.7
        labels = jnp.argmax(teacher_logits, -1)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        loss = jnp.sum(each * confident) / jnp.maximum(jnp.sum(confident), 1)
        loss -= jnp.mean(jnp.log(jnp.mean(jax.nn.softmax(logits), 0) + 1e-8))
        patch, side = model.spec.patch_size, model.spec.grid_size
        target = images.reshape(-1, side, patch, side, patch, 3).swapaxes(2, 3)
        target = target.reshape(*pixels.shape)
        hidden = jnp.sum(mask)
        off = jnp.abs(pixels - target) * mask[..., None]
        loss += jnp.sum(off) / (hidden * pixels.shape[-1])
        apart = jnp.sum(jnp.square(patches - image), -1) * mask
        return loss + 0.2 * jnp.sum(apart) / hidden

    def step(state: Any, batch: Any) -> Any:
        params, teacher, opt_state = state
        weak, strong = (batch[k] / 127.5 - 1.0 for k in ("image_weak", "image_strong"))
        mask = batch["patch_mask"]
        teacher_logits = model.apply({"params": teacher}, weak, jnp.zeros_like(mask))[0]
        loss, grads = jax.value_and_grad(losses)(params, teacher_logits, strong, mask)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        teacher = optax.incremental_update(params, teacher, 0.001)
        return (params, teacher, opt_state), loss

    return step
