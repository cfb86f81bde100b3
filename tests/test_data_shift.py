"""Rows moved sideways against Pillow's affine transform, on photographs and on noise."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from must_jax.data.shift import shift_rows

FILL = (122, 116, 104)
# Three weights are off by 1/256 at most, and the fourth by what the three are together: 6 / 256 of
# the 255 levels by which neighbours differ at most, halved since errors sum to nothing, and one
# level where the cut to whole levels falls between the two.
MOST = 4


def pictures():
    for name in ("china.jpg", "flower.jpg"):
        yield Image.fromarray(load_sample_image(name)).resize((224, 224), Image.Resampling.BICUBIC)


def noise(width=224, height=224):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def both(image, *, slope, distance):
    """By rows, and by Pillow; int (H, W, 3)."""
    ours = shift_rows(image, slope * (np.arange(image.height) + 0.5) + distance, fill_color=FILL)
    matrix = (1, slope, distance, 0, 1, 0)
    bicubic = Image.Resampling.BICUBIC
    theirs = image.transform(image.size, Image.Transform.AFFINE, matrix, bicubic, fillcolor=FILL)
    return np.asarray(ours, int), np.asarray(theirs, int)


@pytest.mark.parity
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("slope", "distance"), [(0.27, 0), (0.3, 0), (0.02, 0), (0, 90.7), (0, 0.5)]
)
def test_photographs_have_pillows_pixels_and_statistics(slope, distance, sign):
    for image in pictures():
        ours, theirs = both(image, slope=sign * slope, distance=sign * distance)
        assert np.abs(ours - theirs).max() <= MOST
        assert np.quantile(np.abs(ours - theirs), 0.999) <= 1
        assert np.abs(ours - theirs).mean() < 0.06
        np.testing.assert_allclose(ours.mean((0, 1)), theirs.mean((0, 1)), atol=0.02)
        np.testing.assert_allclose(ours.std((0, 1)), theirs.std((0, 1)), atol=0.02)


@pytest.mark.parity
@pytest.mark.parametrize("slope", [0.27, -0.27])
def test_noise_is_off_by_the_rounding_of_weights(slope):
    ours, theirs = both(noise(), slope=slope, distance=0)
    assert np.abs(ours - theirs).max() <= MOST
    assert np.abs(ours - theirs).mean() < 0.3
    assert abs((ours - theirs).mean()) < 0.02


def test_whole_pixels_are_moved_untouched():
    image = noise(40, 30)
    pixels = np.asarray(image)
    for distance in (0, 1, 7, 39):
        left = np.asarray(shift_rows(image, np.full(30, distance), fill_color=FILL))
        right = np.asarray(shift_rows(image, np.full(30, -distance), fill_color=FILL))
        np.testing.assert_array_equal(left[:, : 40 - distance], pixels[:, distance:])
        np.testing.assert_array_equal(right[:, distance:], pixels[:, : 40 - distance])
        for rest in (left[:, 40 - distance :], right[:, :distance]):
            np.testing.assert_array_equal(rest, np.broadcast_to(FILL, rest.shape))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 1), (1, 5)])
@pytest.mark.parametrize("distance", [0.3, -0.3, 0.6, -2.5, 100])
def test_images_of_a_few_pixels(size, distance):
    ours, theirs = both(noise(*size), slope=0, distance=distance)
    assert np.abs(ours - theirs).max() <= MOST


def test_extremes_do_not_wrap_around():
    stripes = np.zeros((8, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    for distance in np.linspace(-2, 2, 33):
        ours, theirs = both(Image.fromarray(stripes), slope=0, distance=distance)
        assert np.abs(ours - theirs).max() <= MOST
