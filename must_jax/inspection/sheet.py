"""The contact sheet: views, masks and reconstructions as pictures."""

from __future__ import annotations

import dataclasses

import numpy as np

_PATTERN = (96, 160)  # grey levels of what is masked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guess:
    """What a model takes an image for: a label and its probability."""

    predicted: int
    confidence: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """One image of the sheet.

    Attributes:
        name: As the source calls it.
        label: The true one, or None.
        zero_shot: What zero-shot CLIP takes the weak view for; None where nobody asked it.
        teacher: What the checkpoint's teacher takes it for; None without a checkpoint.
        weak, strong, masked, reconstructed: The pictures, as `data:` addresses.
    """

    name: str
    label: int | None
    zero_shot: Guess | None
    teacher: Guess | None
    weak: str
    strong: str
    masked: str
    reconstructed: str


def unpatchify(patches: np.ndarray, *, patch_size: int) -> np.ndarray:
    """The image (R, R, 3) of which `train_step.mim_target` makes `patches` (N, 3 * p * p)."""
    side = round(len(patches) ** 0.5)
    cut = patches.reshape(side, side, 3, patch_size, patch_size)
    return cut.transpose(0, 3, 1, 4, 2).reshape(side * patch_size, side * patch_size, 3)


def pixel_mask(patch_mask: np.ndarray, *, patch_size: int) -> np.ndarray:
    """Which pixels (R, R, 1) a patch mask (N,) hides."""
    side = round(len(patch_mask) ** 0.5)
    grid = patch_mask.reshape(side, side)
    return grid.repeat(patch_size, axis=0).repeat(patch_size, axis=1)[..., None]


def masked_picture(image: np.ndarray, patch_mask: np.ndarray, *, patch_size: int) -> np.ndarray:
    """`image` (R, R, 3) with a grey pattern where patches are masked."""
    rows, columns = np.indices(image.shape[:2])
    pattern = np.where((rows + columns) // max(1, patch_size // 8) % 2, *_PATTERN)[..., None]
    return np.where(pixel_mask(patch_mask, patch_size=patch_size), pattern, image).astype(np.uint8)


def reconstructed_picture(
    image: np.ndarray,
    patch_mask: np.ndarray,
    reconstruction: np.ndarray,
    *,
    patch_size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> np.ndarray:
    """The strong view with its masked patches as the decoder fills them.

    Args:
        image: uint8 (R, R, 3).
        patch_mask: bool (N,).
        reconstruction: (M, 3 * p * p), normalised pixels of the masked patches, in their order.
        patch_size: p, pixels.
        mean: Of the checkpoint's images, for pixels in 0..1.
        std: Likewise.
    """
    patches = np.zeros((len(patch_mask), reconstruction.shape[-1]), np.float32)
    patches[patch_mask] = reconstruction
    pixels = unpatchify(patches, patch_size=patch_size) * std + mean
    filled = np.clip(np.round(255 * pixels), 0, 255)
    return np.where(pixel_mask(patch_mask, patch_size=patch_size), filled, image).astype(np.uint8)
