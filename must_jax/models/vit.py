"""The image tower with MUST's classifier, mask token and reconstruction decoder."""

from typing import Any, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from must_jax.models.layers import l2_normalize, layer_norm, run_blocks
from must_jax.models.pooling import AttentionPool, ClassTokenPool
from must_jax.models.spec import VisionSpec
from must_jax.sharding import gathered


@flax.struct.dataclass
class VisionOutput:
    """What the image tower gives for B images of N patches.

    Attributes:
      image_embed: (B, E), unit length, float32.
      logits: (B, K), float32; None for a tower without classes.
      patch_embeds: (B, N, E), unit length, float32; None without a patch mask.
      reconstruction: (B, N, 3 * p * p), normalised pixels, channel c * p * p + i * p + j being
        colour c of pixel (i, j) of the patch, float32; None without a patch mask.
    """

    image_embed: jax.Array
    logits: Any = None
    patch_embeds: Any = None
    reconstruction: Any = None


def patchify(images: jax.Array, *, patch_size: int) -> jax.Array:
    """Cuts images (B, R, R, 3) into (B, N, p, p, 3), patches and pixels in row-major order."""
    batch, height, width, colours = images.shape
    rows, columns = height // patch_size, width // patch_size
    cut = images.reshape(batch, rows, patch_size, columns, patch_size, colours)
    return cut.swapaxes(2, 3).reshape(batch, rows * columns, patch_size, patch_size, colours)


def resample_pos_embed(pos_embed: jax.Array, *, grid_size: int, has_class_token: bool) -> jax.Array:
    """Position embeddings (n * n, W) for a grid of another size, (grid_size**2, W).

    The patches' embeddings are resampled bicubically, antialiased. A class token's stays: it is the
    row before them, in what comes in and in what goes out.
    """
    class_token, grid = pos_embed[:has_class_token], pos_embed[has_class_token:]
    side, width = round(len(grid) ** 0.5), grid.shape[-1]
    if side == grid_size:
        return pos_embed
    grid = jax.image.resize(
        grid.reshape(side, side, width), (grid_size, grid_size, width), method="bicubic"
    )
    return jnp.concatenate([class_token, grid.reshape(-1, width)])


def _uniform_init(bound: float) -> nn.initializers.Initializer:
    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32, **_: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class VisionTransformer(nn.Module):
    """The ViT of a CLIP or a SigLIP as MUST trains it (Li et al., 2023, sections 3.1 to 3.3).

    With a patch mask, masked patches enter as `mask_token` and all tokens still run. The parameters
    `mask_token`, `ln_patch` and `decoder` exist only where a mask is given at `init`, `classifier`
    only where `num_classes` is positive; a checkpoint has none of the four.
    """

    spec: VisionSpec
    embed_dim: int
    num_classes: int = 0
    logit_scale: float = 100.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, patch_mask: jax.Array | None = None) -> VisionOutput:
        """Encodes images.

        Args:
          images: (B, R, R, 3), normalised with the checkpoint's mean and deviation.
          patch_mask: (B, N) bool, True where a patch is hidden, or None.
        """
        spec = self.spec
        initial = nn.initializers.normal(0.02)
        patches = patchify(images.astype(self.dtype), patch_size=spec.patch_size)
        patches = patches.reshape(*patches.shape[:2], -1)
        patch_embed = nn.Dense(
            spec.width, use_bias=not spec.has_class_token, dtype=self.dtype, name="patch_embed"
        )
        x = patch_embed(patches)
        if patch_mask is not None:
            mask_token = self.param("mask_token", initial, (1, 1, spec.width))
            x = jnp.where(patch_mask[..., None], mask_token.astype(x.dtype), x)

        if spec.has_class_token:
            class_embed = self.param("class_embed", initial, (spec.width,))
            class_token = jnp.broadcast_to(
                class_embed[None, None].astype(x.dtype), (x.shape[0], 1, spec.width)
            )
            x = jnp.concatenate([class_token, x], axis=1)
        pos_embed = self.param("pos_embed", initial, (spec.num_tokens, spec.width))
        x = x + pos_embed[None].astype(x.dtype)

        norm = {"eps": spec.layer_norm_eps, "dtype": self.dtype}
        if spec.has_class_token:
            x = layer_norm(**norm, name="ln_pre")(x)
        x = run_blocks(self, x, spec=spec, is_causal=False)

        pool = self._make_pool()
        image_embed = l2_normalize(pool.image(x).astype(jnp.float32))
        logits = patch_embeds = reconstruction = None
        if self.num_classes:
            shape = (self.embed_dim, self.num_classes)
            classifier = self.param("classifier", nn.initializers.normal(0.02), shape)
            logits = self.logit_scale * (image_embed @ classifier)
        if patch_mask is not None:
            patch_tokens = layer_norm(**norm, name="ln_patch")(x[:, -spec.num_patches :])
            patch_embeds = l2_normalize(pool.patches(patch_tokens).astype(jnp.float32))
            decoder = nn.Dense(
                3 * spec.patch_size**2,
                kernel_init=_uniform_init(spec.width**-0.5),
                bias_init=_uniform_init(spec.width**-0.5),
                dtype=self.dtype,
                name="decoder",
            )
            reconstruction = decoder(patch_tokens).astype(jnp.float32)
        return VisionOutput(image_embed, logits, patch_embeds, reconstruction)

    def _make_pool(self) -> ClassTokenPool | AttentionPool:
        if not self.spec.has_class_token:
            return AttentionPool(self.spec, self.dtype, name="pool")
        pool = ClassTokenPool(self.spec, self.embed_dim, self.dtype)
        # Its parameters stay beside the tower's own, where converted checkpoints have them.
        nn.share_scope(self, pool)
        return pool


def encode(
    model: VisionTransformer,
    params: Any,
    images: jax.Array,
    patch_mask: jax.Array | None = None,
) -> VisionOutput:
    """`model` with `params` on images (B, R, R, 3), and a patch mask (B, N) or None."""
    return cast(VisionOutput, model.apply({"params": gathered(params)}, images, patch_mask))
