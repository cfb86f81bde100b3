import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image, ImageFont

from must_jax.errors import UserError

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from digits import augment, captions, fonts, warp  # noqa: E402


@pytest.fixture(scope="module")
def ink():
    """The digits of the font inside Pillow: the tests need none of the font packages."""
    font = ImageFont.load_default(size=96)
    return np.stack([fonts.draw_digit(font, digit) for digit in range(10)])


def test_digits_fill_their_box_and_differ(ink):
    for shape in ink:
        rows, columns = (np.flatnonzero(shape.max(axis=axis) > 128) for axis in (1, 0))
        assert len(rows) > 48 or len(columns) > 48
        assert abs((rows[0] + rows[-1]) / 2 - 31.5) <= 1.5
        assert abs((columns[0] + columns[-1]) / 2 - 31.5) <= 1.5
    assert len({shape.tobytes() for shape in ink}) == 10


def test_pictures_depend_on_the_key_alone(ink):
    first, again, other = (
        np.asarray(augment.draw_pictures(jax.random.key(seed), ink, 1.0)) for seed in (5, 5, 6)
    )
    assert first.shape == (10, 32, 32, 3)
    assert first.min() >= 0
    assert first.max() <= 1
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max(axis=(1, 2, 3)).min() > 0.01


def test_unvaried_pictures_are_clean_prints(ink):
    pictures = np.asarray(augment.draw_pictures(jax.random.key(0), ink, 0.0))
    small = ink.reshape(10, 32, 2, 32, 2).mean(axis=(2, 4)) / 255
    for picture, shape in zip(pictures, small, strict=True):
        np.testing.assert_array_equal(picture, picture[..., :1].repeat(3, axis=-1))
        assert abs(np.corrcoef(picture[..., 0].ravel(), shape.ravel())[0, 1]) > 0.85
        corners = picture[[0, 0, -1, -1], [0, -1, 0, -1], 0]
        assert corners.max() < 0.05 or corners.min() > 0.95


def test_many_pictures_have_hidden_blocks(ink):
    pictures = np.stack(
        [augment.draw_pictures(jax.random.key(seed), ink, 1.0) for seed in range(10)]
    )
    blocks = pictures.reshape(100, 4, 8, 4, 8, 3)
    hidden = (blocks == augment.MEAN).all(axis=(2, 4, 5)).sum(axis=(1, 2))
    assert 0.2 < np.mean((hidden >= 1) & (hidden <= 4)) < 0.7


def test_low_resolution_filter_is_pillows(ink):
    image = ink[8][::2, ::2].astype(np.float32)
    expected = Image.fromarray(image).resize((8, 8), Image.Resampling.BOX)
    expected = expected.resize((32, 32), Image.Resampling.BICUBIC)
    matrix = warp.filter_bank(32, low_resolutions=[8], sigmas=[])[1]
    # Sums of at most 255 in float32, in another order.
    np.testing.assert_allclose(matrix @ image @ matrix.T, np.asarray(expected), atol=1e-3)


def test_identity_warp_returns_the_image(ink):
    image = ink[5][..., None].astype(np.float32)
    same = warp.sample(image, warp.pixel_grid(64), fill=0.0)
    # Positions near 1 carry a rounding error of 1e-7, times 32 pixels and a step of 255.
    np.testing.assert_allclose(same, image, atol=0.01)


def test_outside_the_image_is_the_fill():
    image = np.zeros((4, 4, 1), np.float32)
    far = warp.sample(image, warp.pixel_grid(4) + 9.0, fill=0.5)
    np.testing.assert_allclose(far, 0.5, atol=1e-2)


def test_captions_name_the_digit():
    for digit, word in enumerate(captions.WORDS):
        texts = captions.captions(digit=digit, category="serif")
        assert all(word in text or str(digit) in text for text in texts)
    assert len(captions.corpus()) == len(set(captions.corpus())) > 900
    assert set(captions.ZERO_SHOT_TEMPLATES) <= set(captions.TEMPLATES)


def test_missing_font_package_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(fonts, "families", lambda: ["fontpkg-no-such-font"])
    with pytest.raises(UserError, match=r"fontpkg-no-such-font is not installed; run: pip .*txt$"):
        fonts.find_faces(held_out=False)


def test_held_out_families_are_listed():
    assert set(fonts.families()) >= fonts.HELD_OUT_FAMILIES
