"""Random patch masks for masked image modeling (paper section 3.2)."""

from __future__ import annotations

import math

import numpy as np

from must_jax.errors import UserError


def count_masked(
    *, image_size: int, patch_size: int, mask_patch_size: int, mask_ratio: float
) -> int:
    """Patches that `draw_patch_mask` masks, the same number in every image."""
    blocks = (image_size // mask_patch_size) ** 2
    return _count_blocks(blocks, mask_ratio) * (mask_patch_size // patch_size) ** 2


def _count_blocks(blocks: int, mask_ratio: float) -> int:
    # 0.07 * 100 is 7.000000000000001 in binary: without the slack it would mask 8 blocks.
    return math.ceil(mask_ratio * blocks - 1e-9)


def draw_patch_mask(
    rng: np.random.Generator,
    *,
    image_size: int,
    patch_size: int,
    mask_patch_size: int,
    mask_ratio: float,
) -> np.ndarray:
    """Masks a random share of the blocks of an image, each with all its patches.

    Args:
        rng: Source of randomness; not drawn from when `mask_ratio` is 0.
        image_size: Side of the square image, pixels.
        patch_size: Side of a patch of the image tower, pixels.
        mask_patch_size: Side of a block, pixels: a multiple of `patch_size` that divides
            `image_size`.
        mask_ratio: Share of the blocks to mask, 0 to 1; their number is rounded up.

    Returns:
        bool (N,), N = (image_size / patch_size)^2 patches in row-major order, True where masked.

    Raises:
        UserError: The sizes do not divide one another, or the ratio is outside 0 to 1.
    """
    if patch_size < 1 or image_size % patch_size:
        raise UserError(f"image_size {image_size} is not a multiple of patch_size {patch_size}")
    if mask_patch_size < 1 or mask_patch_size % patch_size or image_size % mask_patch_size:
        raise UserError(
            f"mask_patch_size {mask_patch_size} must be a multiple of patch_size {patch_size} "
            f"and divide image_size {image_size}"
        )
    if not 0 <= mask_ratio <= 1:
        raise UserError(f"mask_ratio {mask_ratio} is not between 0 and 1")
    side = image_size // mask_patch_size
    num_masked = _count_blocks(side**2, mask_ratio)
    blocks = np.zeros(side**2, bool)
    if num_masked:
        blocks[rng.choice(side**2, num_masked, replace=False)] = True
    patches_per_block = mask_patch_size // patch_size
    mask = blocks.reshape(side, side).repeat(patches_per_block, 0).repeat(patches_per_block, 1)
    return mask.reshape(-1)
