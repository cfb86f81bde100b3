"""The image tower with MUST's classifier, mask token and reconstruction decoder."""

from typing import Any, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from must_jax.models.layers import l2_normalize, layer_norm, run_blocks, take_rows
from must_jax.models.pooling import AttentionPool, ClassTokenPool
from must_jax.models.spec import VisionSpec
from must_jax.sharding import gathered


@flax.struct.dataclass
class VisionOutput:
    """What the image tower gives for B images, M of whose N patches are masked.

    Attributes:
      image_embed: (B, E), unit length, float32.
      logits: (B, K), float32; None for a tower without classes.
      patch_embeds: (B, M, E), of the masked patches, unit length, float32; None without any.
      reconstruction: (B, M, 3 * p * p), of the masked patches, normalised pixels, channel
        c * p * p + i * p + j being colour c of pixel (i, j), float32; None without any.
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

    Masked patches enter as `mask_token` and all tokens still run, but for the last block, which
    computes no more than is read from it. The parameters `mask_token`, `ln_patch` and `decoder`
    exist only where masked patches are given at `init`, `classifier` only where `num_classes` is
    positive; a checkpoint has none of the four.

    `remat` says what the backward pass computes anew (`layers.REMAT`), `unroll` that every layer is
    compiled for itself. Neither changes results beyond rounding.
    """

    spec: VisionSpec
    embed_dim: int
    num_classes: int = 0
    logit_scale: float = 100.0
    dtype: Any = jnp.float32
    remat: str = "none"
    unroll: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, masked: jax.Array | None = None) -> VisionOutput:
        """Encodes images.

        Args:
          images: (B, R, R, 3), normalised with the checkpoint's mean and deviation.
          masked: (B, M) int, which patches are hidden, each once; or None.
        """
        spec = self.spec
        initial = nn.initializers.normal(0.02)
        patches = patchify(images.astype(self.dtype), patch_size=spec.patch_size)
        patches = patches.reshape(*patches.shape[:2], -1)
        patch_embed = nn.Dense(
            spec.width, use_bias=not spec.has_class_token, dtype=self.dtype, name="patch_embed"
        )
        x = patch_embed(patches)
        if masked is not None:
            mask_token = self.param("mask_token", initial, (1, 1, spec.width))
            places = jnp.arange(spec.num_patches)[None, None]
            is_masked = jnp.any(masked[:, :, None] == places, axis=1)
            x = jnp.where(is_masked[..., None], mask_token.astype(x.dtype), x)

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
        rows = None
        if spec.has_class_token:  # attention pooling reads all tokens
            rows = jnp.zeros((x.shape[0], 1), jnp.int32)
            if masked is not None:
                rows = jnp.concatenate([rows, 1 + masked], axis=1)
        x = run_blocks(
            self, x, spec=spec, is_causal=False, rows=rows, remat=self.remat, unroll=self.unroll
        )

        pool = self._make_pool()
        image_embed = l2_normalize(pool.image(x).astype(jnp.float32))
        logits = patch_embeds = reconstruction = None
        if self.num_classes:
            shape = (self.embed_dim, self.num_classes)
            classifier = self.param("classifier", nn.initializers.normal(0.02), shape)
            logits = self.logit_scale * (image_embed @ classifier)
        if masked is not None:
            patch_tokens = x[:, 1:] if spec.has_class_token else take_rows(x, masked)
            patch_tokens = layer_norm(**norm, name="ln_patch")(patch_tokens)
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
    masked: jax.Array | None = None,
) -> VisionOutput:
    """`model` with `params` on images (B, R, R, 3), M patches of each masked (B, M), or None."""
    return cast(VisionOutput, model.apply({"params": gathered(params)}, images, masked))
