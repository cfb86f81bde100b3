"""The fast resampler and decoding to need against Pillow's way, on photographs."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from must_jax.data.decode import decode_image, decode_pixels
from must_jax.data.resize import resized
from must_jax.data.views import draw_crop, smallest_side

PHOTOS = ["china.jpg", "flower.jpg"]


def photo(name, size=None):
    image = Image.fromarray(load_sample_image(name))
    return image.resize(size, Image.Resampling.LANCZOS) if size else image


def levels(image):
    return np.asarray(image).astype(float)


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize("box", [None, (60, 20, 420, 330), (10, 5, 120, 100)])
@pytest.mark.parametrize("size", [(224, 224), (298, 224), (32, 32)])
def test_resampling_is_pillows_but_for_rounding(name, box, size):
    image = photo(name, (500, 375))
    ours = levels(resized(np.asarray(image), size, box=box))
    theirs = levels(image.resize(size, Image.Resampling.BICUBIC, box=box))
    # Each rounds twice, in another order of the directions; overshoot at edges is clipped between.
    assert np.abs(ours - theirs).mean() < 0.3
    assert np.quantile(np.abs(ours - theirs), 0.999) <= 3
    np.testing.assert_allclose(ours.mean((0, 1)), theirs.mean((0, 1)), atol=0.05)
    np.testing.assert_allclose(ours.std((0, 1)), theirs.std((0, 1)), atol=0.1)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (3000, 2)])
def test_images_of_a_few_pixels(size):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    ours, theirs = (
        resized(np.asarray(image), (8, 8)),
        image.resize((8, 8), Image.Resampling.BICUBIC),
    )
    assert np.abs(ours.astype(int) - np.asarray(theirs)).max() <= 2


@pytest.mark.parametrize("name", PHOTOS)
def test_views_of_a_jpeg_decoded_to_need_have_the_same_statistics(name):
    data = io.BytesIO()
    photo(name, (2000, 1500)).save(data, "JPEG", quality=92)
    side = smallest_side(image_size=224, crop_area=(0.3, 1.0))
    whole = np.asarray(decode_image(data.getvalue(), name="x"))
    needed = decode_pixels(data.getvalue(), name="x", smallest_side=side)
    assert whole.shape == (1500, 2000, 3)
    assert needed.shape == (750, 1000, 3)
    ours, theirs = (levels(resized(pixels, (298, 224))) for pixels in (needed, whole))
    # Averages of 2 x 2 pixels, resampled, against pixels, resampled: half a grey level.
    assert np.abs(ours - theirs).mean() < 0.6
    np.testing.assert_allclose(ours.mean((0, 1)), theirs.mean((0, 1)), atol=0.2)
    np.testing.assert_allclose(ours.std((0, 1)), theirs.std((0, 1)), rtol=0.01)


def test_small_images_and_other_formats_are_decoded_whole():
    for size, kind in [((800, 600), "JPEG"), ((800, 600), "PNG"), ((2000, 1500), "PNG")]:
        data = io.BytesIO()
        photo("china.jpg", size).save(data, kind)
        pixels = decode_pixels(data.getvalue(), name="x", smallest_side=472)
        assert pixels.shape == (size[1], size[0], 3)


@pytest.mark.parametrize("width", [224, 300])
def test_a_box_resampled_is_cut_from_the_whole_resampled(width):
    pixels = np.asarray(photo("flower.jpg", (500, 375)))
    whole = resized(pixels, (width, 224))
    left, right = 20, 180
    box = (left * 500 / width, 0, right * 500 / width, 375)
    np.testing.assert_array_equal(resized(pixels, (160, 224), box=box), whole[:, left:right])


def test_no_crop_has_fewer_pixels_than_the_view():
    rng = np.random.default_rng(0)
    side = smallest_side(image_size=224, crop_area=(0.3, 1.0))
    for width, height in [(side, side), (side, 3 * side), (side + 300, side)]:
        for _ in range(2000):
            left, top, right, bottom = draw_crop(
                rng, width=width, height=height, crop_area=(0.3, 1.0)
            )
            assert min(right - left, bottom - top) >= 223  # sides are rounded to whole pixels
