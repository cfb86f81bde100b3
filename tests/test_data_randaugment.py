"""RandAugment against timm's functions, op by op on the same draw, and the statistics of draws."""

import collections
import importlib.util
import pathlib
import random

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from must_jax.data import randaugment

FILL = (122, 116, 104)


@pytest.fixture(scope="module")
def timm():
    # By its file: the package itself imports torchvision.
    (folder,) = importlib.util.find_spec("timm").submodule_search_locations
    path = pathlib.Path(folder) / "data" / "auto_augment.py"
    spec = importlib.util.spec_from_file_location("timm_auto_augment", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(20, 220, (8, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((64, 48), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8))


def _timm_names(timm):
    return dict(zip(randaugment.OPERATIONS, timm._RAND_INCREASING_TRANSFORMS, strict=True))


@pytest.mark.parity
def test_names_are_those_of_the_increasing_set(timm):
    assert len(randaugment.OPERATIONS) == 15
    for name, theirs in _timm_names(timm).items():
        assert theirs in (name, f"{name}Increasing", f"{name}Rel")


@pytest.mark.parity
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", randaugment.OPERATIONS)
def test_arguments_equal_timms(timm, monkeypatch, name, sign):
    monkeypatch.setattr(timm, "_randomly_negate", lambda value: sign * value)
    to_argument = timm.LEVEL_TO_ARG[_timm_names(timm)[name]]
    for magnitude in np.linspace(0, 10, 201):
        ours = randaugment.argument(name=name, magnitude=magnitude, sign=sign)
        (theirs,) = to_argument(magnitude, {}) if to_argument else (0,)
        assert ours == pytest.approx(theirs, rel=1e-12), magnitude
        assert isinstance(ours, int) == isinstance(theirs, int)


@pytest.mark.parity
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", randaugment.OPERATIONS)
def test_pixels_equal_timms(timm, image, name, sign):
    before = np.array(image)
    operation = timm.NAME_TO_OP[_timm_names(timm)[name]]
    strengthless = timm.LEVEL_TO_ARG[_timm_names(timm)[name]] is None
    for magnitude in (0, 0.3, 5, 8.37, 9, 9.99, 10):
        argument = randaugment.argument(name=name, magnitude=magnitude, sign=sign)
        ours = randaugment.apply(image, name=name, argument=argument, fill_color=FILL)
        if name == "Posterize" and argument == 0:
            theirs = np.zeros_like(before)
        else:
            arguments = () if strengthless else (argument,)
            bicubic = Image.Resampling.BICUBIC
            theirs = operation(image, *arguments, fillcolor=FILL, resample=bicubic)
        # By one level where weights are rounded, tests/test_data_shift.py; all else is exact.
        atol = 1 if name.startswith(("Shear", "Translate")) else 0
        np.testing.assert_allclose(np.asarray(ours, int), np.asarray(theirs, int), atol=atol)
        assert ours.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), before)


def test_what_is_uncovered_gets_the_fill_colour(image):
    shifted = randaugment.apply(image, name="TranslateX", argument=0.45, fill_color=FILL)
    np.testing.assert_array_equal(np.asarray(shifted)[:, -10:], np.broadcast_to(FILL, (48, 10, 3)))


def test_unknown_operation(image):
    with pytest.raises(ValueError, match="unknown operation 'Blur'"):
        randaugment.apply(image, name="Blur", argument=0, fill_color=FILL)


def _draws(number=30000, **settings):
    rng = np.random.default_rng(0)
    augment = randaugment.RandAugment(**settings)
    return [augment.draw(rng) for _ in range(number)]


# Chi-square tests at a fixed seed: they don't flicker; 0.001 is the chance that a right draw
# would have failed when the seed was chosen.
def test_operations_are_uniform_and_independent():
    draws = _draws(probability=1.0)
    pairs = collections.Counter((first[0], second[0]) for first, second in draws)
    assert len(pairs) == 15 * 15
    assert stats.chisquare(list(pairs.values())).pvalue > 0.001


def test_each_operation_is_applied_half_of_the_time():
    counts = collections.Counter(len(draw) for draw in _draws())
    expected = [7500, 15000, 7500]
    assert stats.chisquare([counts[number] for number in range(3)], expected).pvalue > 0.001


def test_directions_are_even():
    signs = [np.sign(value) for draw in _draws() for name, value in draw if name == "Rotate"]
    assert stats.binomtest(signs.count(1), len(signs)).pvalue > 0.001


def test_magnitudes_are_a_clipped_normal():
    draws = _draws(probability=1.0)
    levels = [abs(value) / 3 for draw in draws for name, value in draw if name == "Rotate"]
    clipped = np.mean(np.isclose(levels, 10))
    assert clipped == pytest.approx(stats.norm.sf(2), abs=0.01)
    inside = [level for level in levels if level < 9.999]
    truncated = stats.truncnorm(-18, 2, loc=9, scale=0.5)
    assert stats.kstest(inside, truncated.cdf).pvalue > 0.001


@pytest.mark.parity
def test_draws_are_distributed_as_timms(timm, monkeypatch):
    """Both as the share of images to which (operation, argument rounded) was applied."""
    seen = collections.Counter()

    def record(name):
        def operation(img, *arguments, **_):
            seen[name, round(float(arguments[0]), 1) if arguments else 0] += 1
            return img

        return operation

    names = _timm_names(timm)
    for name, theirs in names.items():
        monkeypatch.setitem(timm.NAME_TO_OP, theirs, record(name))
    random.seed(0)
    np.random.seed(0)
    transform = timm.rand_augment_transform("rand-m9-mstd0.5-inc1", {"img_mean": FILL})
    for _ in range(20000):
        transform(None)
    ours = collections.Counter(
        (name, round(float(value), 1)) for draw in _draws(20000) for name, value in draw
    )
    assert abs(ours.total() - seen.total()) < 5 * np.sqrt(20000)
    common = [key for key in ours | seen if ours[key] + seen[key] >= 20]
    table = [[ours[key] for key in common], [seen[key] for key in common]]
    assert stats.chi2_contingency(table).pvalue > 0.001


def test_switched_off():
    assert _draws(10, num_ops=0) == [[]] * 10
    assert _draws(10, probability=0.0) == [[]] * 10


def test_without_spread_the_magnitude_is_exact():
    draws = _draws(2000, magnitude_std=0.0, probability=1.0, num_ops=1)
    assert {abs(draw[0][1]) for draw in draws if draw[0][0] == "Rotate"} == {27.0}
