import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import ImageFont

from must_jax.errors import UserError
from must_jax.tokenizer import load_clip_tokenizer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import pretrain_digits_clip  # noqa: E402
from digits import bpe, captions, fonts, model, train  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    bpe.write_tokenizer(
        folder, captions.corpus(), num_merges=1000, context_length=model.CONTEXT_LENGTH
    )
    return load_clip_tokenizer(folder)


@pytest.fixture(scope="module")
def shapes():
    """The digits of the font inside Pillow."""
    font = ImageFont.load_default(size=96)
    ink = np.stack([fonts.draw_digit(font, digit) for digit in range(10)])
    return fonts.Shapes(ink=ink[None], category=("sans serif",))


@pytest.mark.slow
def test_same_seed_same_parameters(tokenizer, shapes):
    first, again, other = (
        train.pretrain(tokenizer, shapes, seed=seed, steps=2, batch_size=8)[1] for seed in (0, 0, 1)
    )
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first["vision"]["proj"], other["vision"]["proj"])


@pytest.mark.slow
def test_a_short_run_of_the_program_reads_unseen_fonts(tmp_path, capsys):
    pretrain_digits_clip.make_clip(tmp_path / "clip", seed=7, steps=200, batch_size=64)
    clean = next(line for line in capsys.readouterr().out.splitlines() if "clean" in line)
    # Chance is 10; 43 was seen, and rounding differs between machines.
    assert float(clean.rsplit(" ", 1)[1].rstrip("%")) > 25


def test_an_existing_target_is_refused(tmp_path):
    with pytest.raises(UserError, match="exists already"):
        pretrain_digits_clip.make_clip(tmp_path, seed=0, steps=1, batch_size=8)


def test_scale_and_variation_reach_their_ends():
    scales = [float(train.logit_scale(step, steps=90)) for step in range(90)]
    assert scales[0] == pytest.approx(10)
    assert scales == sorted(scales)
    assert scales[30:] == pytest.approx([100] * 60)
    limits = [float(train.variation(step, steps=90)) for step in range(90)]
    assert limits[0] == 0
    assert limits[30:] == [1] * 60
