"""Turns digit shapes into varied pictures: warps, colours, blur, noise, crops, hidden blocks.

Everything is drawn from one key, so a picture depends on its key and shape alone.
"""

import jax
import jax.numpy as jnp

from digits import fonts, warp

IMAGE_SIZE = 32
BLOCKS = 4
MEAN = 0.5
STD = 0.3

_LOW_RESOLUTIONS = [6, 7, 8, 8, 8, 9, 10, 12, 16]
_SIGMAS = [0.6, 1.0, 1.5]


def _uniform(key: jax.Array, low: float, high: float, shape: tuple[int, ...] = ()) -> jax.Array:
    return jax.random.uniform(key, shape, minval=low, maxval=high)


def _chance(key: jax.Array, probability: float) -> jax.Array:
    return jax.random.bernoulli(key, probability)


def _draw_ink(key: jax.Array, strength: jax.Array, ink: jax.Array) -> jax.Array:
    """A warped shape with thinner or bolder strokes: (64, 64) uint8 -> (32, 32) in 0..1."""
    keys = jax.random.split(key, 9)
    size = fonts.SHAPE_SIZE
    scale = 1 + strength * _uniform(keys[0], -0.4, 0.3)
    aspect = jnp.exp(strength * 0.25 * jax.random.normal(keys[1]))
    matrix = warp.affine(
        angle=strength * 0.2 * jax.random.normal(keys[2]),
        shear=strength * 0.25 * jax.random.normal(keys[3]),
        scale_x=scale * aspect,
        scale_y=scale,
    )
    grid = warp.pixel_grid(size)
    wobble = (
        strength
        * _uniform(keys[4], 0.0, 0.16)
        * warp.smooth_field(keys[5], knots=5, channels=2, size=size)
    )
    tilt = 1 + grid @ (strength * 0.1 * jax.random.normal(keys[6], (2,)))
    where = (grid - strength * _uniform(keys[7], -0.2, 0.2, (1, 1, 2))) * tilt[..., None]
    drawn = warp.sample(ink[..., None] / 255.0, where @ matrix.T + wobble, fill=0.0)[..., 0]

    blur = jnp.asarray(warp.filter_bank(size, low_resolutions=[], sigmas=[1.5])[1])
    soft = blur @ drawn @ blur.T
    soft = soft / jnp.maximum(soft.max(), 1e-3)
    bolder = jax.nn.sigmoid((soft - _uniform(keys[8], 0.2, 0.65)) * 16)
    return bolder.reshape(IMAGE_SIZE, 2, IMAGE_SIZE, 2).mean(axis=(1, 3))


def _paint(key: jax.Array, strength: jax.Array, ink: jax.Array) -> jax.Array:
    """Ink (32, 32) in one colour over a background of another, as (32, 32, 3) in 0..1."""
    keys = jax.random.split(key, 8)
    dark = strength * _uniform(keys[0], 0.0, 0.6)
    light = 1 - strength * _uniform(keys[1], 0.0, 1.0) * (0.7 - dark)
    plain = _chance(keys[2], 0.3)
    dark, light = jnp.where(plain, 0.0, dark), jnp.where(plain, 1.0, light)
    ground, stroke = jnp.where(
        _chance(keys[3], 0.5), jnp.array([dark, light]), jnp.array([light, dark])
    )
    chroma = strength * jnp.where(_chance(keys[4], 0.5), 0.2, 0.0)
    tint = chroma * jax.random.normal(keys[5], (2, 1, 1, 3))
    texture = warp.smooth_field(keys[6], knots=4, channels=1, size=IMAGE_SIZE)
    depth = jnp.where(plain, 0.0, strength * jnp.maximum(_uniform(keys[7], -0.15, 0.15), 0.0))
    background = ground + tint[0] + depth * texture
    painted = background + ink[..., None] * (stroke + tint[1] - background)
    return jnp.clip(painted, 0.0, 1.0)


def _crop_and_turn(key: jax.Array, strength: jax.Array, image: jax.Array) -> jax.Array:
    """A crop, turn, slant or shift of the finished picture, mean colour around it; often none."""
    keys = jax.random.split(key, 7)
    zoom = 1 / jnp.sqrt(_uniform(keys[0], 0.4, 1.0))
    stretch = jnp.exp(_uniform(keys[1], -0.14, 0.14))
    crop_room = 1 - 1 / zoom
    moved = _chance(keys[2], 0.5)
    matrix = warp.affine(
        angle=moved * _uniform(keys[3], -0.45, 0.45),
        shear=moved * _uniform(keys[4], -0.25, 0.25),
        scale_x=zoom * stretch,
        scale_y=zoom / stretch,
    )
    shift = _uniform(keys[5], -1.0, 1.0, (1, 1, 2)) * (crop_room + 0.15 * moved)
    where = warp.pixel_grid(IMAGE_SIZE) @ matrix.T + shift
    return jnp.where(_chance(keys[6], 0.5 * strength), warp.sample(image, where, fill=MEAN), image)


def _recolour(key: jax.Array, strength: jax.Array, image: jax.Array) -> jax.Array:
    """Up to seven changes of tone, at most one time in six each."""
    keys = jax.random.split(key, 8)
    apply = jax.random.bernoulli(keys[0], strength / 6, (7,))
    grey = image.mean(axis=-1, keepdims=True)
    image = jnp.where(apply[0], grey + (image - grey) * _uniform(keys[1], 0.0, 2.0), image)
    image = jnp.where(apply[1], image * _uniform(keys[2], 0.3, 1.7), image)
    image = jnp.clip(image, 0.0, 1.0)
    level = image.mean()
    image = jnp.where(apply[2], level + (image - level) * _uniform(keys[3], 0.3, 1.7), image)
    image = jnp.clip(image, 0.0, 1.0)
    image = jnp.where(apply[3], image ** jnp.exp(_uniform(keys[4], -0.7, 0.7)), image)
    steps = jax.random.choice(keys[5], jnp.array([1.0, 2.0, 3.0, 7.0]))
    image = jnp.where(apply[4], jnp.round(image * steps) / steps, image)
    edge = _uniform(keys[6], 0.3, 1.0)
    image = jnp.where(apply[5] & (image >= edge), 1.0 - image, image)
    return jnp.where(apply[6], 1.0 - image, image)


def _hide_blocks(key: jax.Array, strength: jax.Array, image: jax.Array) -> jax.Array:
    """Often, 1 to 4 of the 16 square blocks become the mean colour."""
    keys = jax.random.split(key, 3)
    count = jax.random.randint(keys[0], (), 1, 5) * _chance(keys[1], 0.7 * strength)
    rank = jax.random.permutation(keys[2], BLOCKS**2)
    hidden = (rank < count).reshape(BLOCKS, BLOCKS)
    side = IMAGE_SIZE // BLOCKS
    hidden = jnp.repeat(jnp.repeat(hidden, side, axis=0), side, axis=1)
    return jnp.where(hidden[..., None], MEAN, image)


def _draw_one(key: jax.Array, limit: jax.Array, ink: jax.Array) -> jax.Array:
    keys = jax.random.split(key, 10)
    strength = limit * jnp.sqrt(_uniform(keys[0], 0.0, 1.0))
    image = _paint(keys[1], strength, _draw_ink(keys[2], strength, ink))
    bank = jnp.asarray(
        warp.filter_bank(IMAGE_SIZE, low_resolutions=_LOW_RESOLUTIONS, sigmas=_SIGMAS)
    )
    choice = jax.random.randint(keys[3], (), 1, len(bank)) * _chance(keys[4], strength)
    image = jnp.einsum("ij,jkc,lk->ilc", bank[choice], image, bank[choice])
    image = _crop_and_turn(keys[5], strength, jnp.clip(image, 0.0, 1.0))
    image = _recolour(keys[6], strength, image)
    level = strength * jnp.maximum(_uniform(keys[7], -0.1, 0.15), 0.0)
    image = image + level * jax.random.normal(keys[8], image.shape)
    return _hide_blocks(keys[9], strength, jnp.clip(image, 0.0, 1.0))


@jax.jit
def draw_pictures(key: jax.Array, ink: jax.Array, limit: jax.Array | float = 1.0) -> jax.Array:
    """Pictures (B, 32, 32, 3) in 0..1 of shapes (B, 64, 64) uint8.

    Each picture draws how strongly it is varied, up to `limit`: 0 is a clean print, 1 the widest.
    """
    keys = jax.random.split(key, ink.shape[0])
    return jax.vmap(_draw_one, in_axes=(0, None, 0))(keys, jnp.asarray(limit), ink)


def normalise(images: jax.Array) -> jax.Array:
    """Pixels in 0..1 as the image tower takes them."""
    return (images - MEAN) / STD
