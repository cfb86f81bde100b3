"""Shears and translations against Pillow's affine transform, on photographs and on noise."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from must_jax.data.shift import shear, translate

FILL = (122, 116, 104)
# Three weights are off by 1/256 at most, and the fourth by what the three are together: 6 / 256 of
# the 255 levels by which neighbours differ at most, halved since errors sum to nothing, and one
# level where the cut to whole levels falls between the two.
MOST = 4
SHEARS = [(slope, 0, 0) for slope in (0.27, -0.27, 0.3, -0.3, 0.02)]
TRANSLATIONS = [
    *[(0, distance, 0) for distance in (90.7, -90.7, 0.5, -0.5, 100.8)],
    *[(0, 0, distance) for distance in (90.7, -90.7, 0.5, -0.5, 100.8)],
]


def pictures():
    for name in ("china.jpg", "flower.jpg"):
        yield Image.fromarray(load_sample_image(name)).resize((224, 224), Image.Resampling.BICUBIC)


def noise(width=224, height=224):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def both(image, *, slope=0.0, left=0.0, up=0.0):
    """Ours and Pillow's; int (H, W, 3)."""
    if slope:
        ours = shear(np.asarray(image), slope, fill_color=FILL)
    else:
        distance, axis = (up, 0) if up else (left, 1)
        ours = translate(np.asarray(image), distance, axis=axis, fill_color=FILL)
    matrix = (1, slope, left, 0, 1, up)
    bicubic = Image.Resampling.BICUBIC
    theirs = image.transform(image.size, Image.Transform.AFFINE, matrix, bicubic, fillcolor=FILL)
    return ours.astype(int), np.asarray(theirs, int)


@pytest.mark.parity
@pytest.mark.parametrize(("slope", "left", "up"), SHEARS + TRANSLATIONS)
def test_photographs_have_pillows_pixels_and_statistics(slope, left, up):
    for image in pictures():
        ours, theirs = both(image, slope=slope, left=left, up=up)
        assert np.abs(ours - theirs).max() <= MOST
        assert np.quantile(np.abs(ours - theirs), 0.999) <= 1
        assert np.abs(ours - theirs).mean() < 0.06
        np.testing.assert_allclose(ours.mean((0, 1)), theirs.mean((0, 1)), atol=0.02)
        np.testing.assert_allclose(ours.std((0, 1)), theirs.std((0, 1)), atol=0.02)


@pytest.mark.parity
@pytest.mark.parametrize(("slope", "left", "up"), [(0.27, 0, 0), (-0.27, 0, 0), (0, 0.3, 0)])
def test_noise_is_off_by_the_rounding_of_weights(slope, left, up):
    ours, theirs = both(noise(), slope=slope, left=left, up=up)
    assert np.abs(ours - theirs).max() <= MOST
    assert np.abs(ours - theirs).mean() < 0.4
    assert abs((ours - theirs).mean()) < 0.02


@pytest.mark.parametrize("axis", [0, 1])
def test_whole_pixels_are_moved_untouched(axis):
    pixels = np.asarray(noise(40, 40))
    for distance in (0, 1, 7, 39):
        near = translate(pixels, distance, axis=axis, fill_color=FILL).swapaxes(0, axis)
        far = translate(pixels, -distance, axis=axis, fill_color=FILL).swapaxes(0, axis)
        expected = pixels.swapaxes(0, axis)
        np.testing.assert_array_equal(near[: 40 - distance], expected[distance:])
        np.testing.assert_array_equal(far[distance:], expected[: 40 - distance])
        for rest in (near[40 - distance :], far[:distance]):
            np.testing.assert_array_equal(rest, np.broadcast_to(FILL, rest.shape))


@pytest.mark.parity
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 1), (1, 5), (9, 70)])
@pytest.mark.parametrize("amount", [0.3, -0.3, 0.5, -0.5, 0.6, -2.5, 100, -100])
def test_images_of_a_few_pixels(size, amount):
    for move in ("slope", "left", "up"):
        ours, theirs = both(noise(*size), **{move: amount})
        assert np.abs(ours - theirs).max() <= MOST, move


@pytest.mark.parity
def test_extremes_do_not_wrap_around():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    for image in (Image.fromarray(stripes), Image.fromarray(stripes.swapaxes(0, 1))):
        for distance in np.linspace(-2, 2, 33):
            for move in ("slope", "left", "up"):
                ours, theirs = both(image, **{move: distance})
                assert np.abs(ours - theirs).max() <= MOST, move
