"""draw_patch_mask: number, shape, spread and independence of the masked blocks."""

import math

import numpy as np
import pytest

from must_jax.data.masking import draw_patch_mask
from must_jax.errors import UserError


def _mask(rng, image_size=224, patch_size=16, mask_patch_size=32, mask_ratio=0.3):
    return draw_patch_mask(
        rng,
        image_size=image_size,
        patch_size=patch_size,
        mask_patch_size=mask_patch_size,
        mask_ratio=mask_ratio,
    )


@pytest.mark.parametrize(
    ("image_size", "patch_size", "mask_patch_size", "mask_ratio", "blocks"),
    [
        # The published recipes, counted by hand, and the ends of the range.
        (224, 16, 32, 0.3, 15),
        (224, 14, 56, 0.3, 5),
        (224, 14, 56, 0.5, 8),
        (224, 14, 28, 0.2, 13),
        (224, 16, 32, 0.1, 5),
        (224, 16, 32, 0.5, 25),
        (224, 16, 16, 0.1, 20),
        (32, 4, 8, 0.1, 2),
        (80, 8, 8, 0.07, 7),
        (224, 16, 32, 0.0, 0),
        (224, 16, 32, 1.0, 49),
        (224, 16, 224, 0.01, 1),
    ],
)
def test_count_and_blocks(image_size, patch_size, mask_patch_size, mask_ratio, blocks):
    side, per_block = image_size // patch_size, mask_patch_size // patch_size
    for seed in range(5):
        rng = np.random.default_rng(seed)
        mask = _mask(rng, image_size, patch_size, mask_patch_size, mask_ratio)
        assert mask.dtype == bool
        assert mask.shape == (side**2,)
        tiles = mask.reshape(side // per_block, per_block, side // per_block, per_block)
        masked_in_block = tiles.sum((1, 3))
        assert set(np.unique(masked_in_block)) <= {0, per_block**2}
        assert (masked_in_block > 0).sum() == blocks


def test_rows_come_first():
    mask = _mask(np.random.default_rng(0), image_size=8, patch_size=2, mask_patch_size=4)
    square = mask.reshape(4, 4)
    np.testing.assert_array_equal(square[0], square[1])
    np.testing.assert_array_equal(square[:, 2], square[:, 3])


def test_every_block_is_as_likely_and_pairs_are_too():
    rng = np.random.default_rng(0)
    draws = np.stack(
        [_mask(rng, image_size=64, patch_size=16, mask_patch_size=16) for _ in range(20000)]
    )
    share = math.ceil(0.3 * 16) / 16
    # Five standard errors of a share of 20,000 draws.
    np.testing.assert_allclose(draws.mean(0), share, atol=5 * math.sqrt(share * (1 - share) / 2e4))
    pairs = (draws.T.astype(float) @ draws) / len(draws)
    expected = 5 * 4 / (16 * 15)
    off_diagonal = pairs[~np.eye(16, dtype=bool)]
    np.testing.assert_allclose(off_diagonal, expected, atol=5 * math.sqrt(expected / 2e4))


@pytest.mark.parametrize(
    "sizes",
    [
        {"image_size": 225},
        {"patch_size": 0},
        {"mask_patch_size": 24},
        {"mask_patch_size": 48},
        {"mask_patch_size": 0},
        {"mask_ratio": -0.1},
        {"mask_ratio": 1.1},
        {"mask_ratio": float("nan")},
    ],
)
def test_impossible_values(sizes):
    with pytest.raises(UserError) as error:
        _mask(np.random.default_rng(0), **sizes)
    assert "\n" not in str(error.value)
