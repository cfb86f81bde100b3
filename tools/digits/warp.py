"""Warps and blurs of one image, for `jax.vmap` over a batch. Coordinates run from -1 to 1."""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image


def affine(
    *, angle: jax.Array, shear: jax.Array, scale_x: jax.Array, scale_y: jax.Array
) -> jax.Array:
    """The (2, 2) matrix from output to input coordinates: turn, slant, then shrink the content."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rotate = jnp.array([[cos, sin], [-sin, cos]])
    slant = jnp.array([[1.0, shear], [0.0, 1.0]])
    return jnp.diag(jnp.array([1.0 / scale_x, 1.0 / scale_y])) @ slant @ rotate


def pixel_grid(size: int) -> jax.Array:
    """Pixel centres of a square image as (size, size, 2), x before y."""
    line = (jnp.arange(size) + 0.5) * 2 / size - 1
    return jnp.stack(jnp.meshgrid(line, line, indexing="xy"), axis=-1)


def smooth_field(key: jax.Array, *, knots: int, channels: int, size: int) -> jax.Array:
    """Unit normal noise on a (knots, knots) grid, enlarged to (size, size, channels)."""
    noise = jax.random.normal(key, (knots, knots, channels))
    return jax.image.resize(noise, (size, size, channels), "cubic")


def sample(image: jax.Array, where: jax.Array, *, fill: float) -> jax.Array:
    """`image` (H, H, C) read bilinearly at `where` (h, h, 2), `fill` outside of it."""
    size = image.shape[0]
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=fill)
    position = jnp.clip((where + 1) * size / 2 + 0.5, 0.0, size + 0.999)
    corner = jnp.floor(position).astype(jnp.int32)
    weight = (position - corner)[..., None]
    x, y = corner[..., 0], corner[..., 1]
    flat = padded.reshape(-1, image.shape[-1])
    start = y * (size + 2) + x
    top = flat[start] * (1 - weight[..., 0, :]) + flat[start + 1] * weight[..., 0, :]
    below = start + size + 2
    bottom = flat[below] * (1 - weight[..., 0, :]) + flat[below + 1] * weight[..., 0, :]
    return top * (1 - weight[..., 1, :]) + bottom * weight[..., 1, :]


def _gaussian(size: int, sigma: float) -> np.ndarray:
    offset = np.arange(size)[:, None] - np.arange(size)[None]
    weight = np.exp(-0.5 * (offset / sigma) ** 2)
    return weight / weight.sum(axis=1, keepdims=True)


def _low_resolution(size: int, small: int) -> np.ndarray:
    """Down to `small` pixels by area and back by Pillow's bicubic, along one axis."""
    columns = [
        Image.fromarray(column[:, None].astype(np.float32))
        .resize((1, small), Image.Resampling.BOX)
        .resize((1, size), Image.Resampling.BICUBIC)
        for column in np.eye(size)
    ]
    return np.concatenate([np.asarray(column) for column in columns], axis=1)


def filter_bank(size: int, *, low_resolutions: list[int], sigmas: list[float]) -> np.ndarray:
    """(n, size, size) matrices: identity, the low resolutions, the Gaussian blurs.

    A matrix `m` filters an image as `m @ image @ m.T`.
    """
    bank = [np.eye(size)]
    bank += [_low_resolution(size, small) for small in low_resolutions]
    bank += [_gaussian(size, sigma) for sigma in sigmas]
    return np.stack(bank).astype(np.float32)
