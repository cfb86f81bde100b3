"""Views: the evaluation view against transformers, crops against timm's distribution."""

import ast
import importlib.util
import math
import pathlib
import random
import types

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from must_jax.data import randaugment, views
from must_jax.data.resize import resized

FILL = (122, 116, 104)


def _image(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _strong(image, rng, **changes):
    settings = {
        "image_size": 32,
        "crop_area": (0.3, 1.0),
        "flip_probability": 0.5,
        "rand_augment": randaugment.RandAugment(),
        "fill_color": FILL,
    }
    return views.strong_view(np.asarray(image), rng=rng, **(settings | changes))


@pytest.mark.parity
@pytest.mark.parametrize("image_size", [224, 32, 33])
def test_evaluation_view_is_pixel_for_pixel_that_of_transformers(image_size):
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
        do_rescale=False,
        do_normalize=False,
    )
    rng = np.random.default_rng(image_size)
    sizes = [
        *[(500, 375), (375, 500), (640, 481), (33, 50), (51, 32), (28, 28), (8, 8), (1, 1)],
        *[(1, 7), (9, 1), (224, 224), (225, 224), (224, 225), (223, 224), (400, 17)],
        *rng.integers(2, 320, (25, 2)).tolist(),
    ]
    for width, height in sizes:
        image = _image(width, height)
        (expected,) = processor(image, return_tensors="np")["pixel_values"]
        view = views.evaluation_view(image, image_size=image_size)
        assert view.dtype == np.uint8
        np.testing.assert_array_equal(view, expected.transpose(1, 2, 0), str((width, height)))


@pytest.mark.parity
@pytest.mark.parametrize(("width", "height"), [(60, 40), (40, 60)])
def test_weak_view_is_a_uniform_crop_of_the_resized_image(width, height):
    image = _image(width, height)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, do_center_crop=False, do_rescale=False, do_normalize=False
    )
    (whole,) = processor(image, return_tensors="np")["pixel_values"]
    whole = whole.transpose(1, 2, 0)
    wide = width > height
    crops = [
        whole[:, offset : offset + 32] if wide else whole[offset : offset + 32]
        for offset in range(17)
    ]
    rng = np.random.default_rng(0)
    offsets = []
    for _ in range(1700):
        view = views.weak_view(np.asarray(image), image_size=32, rng=rng).astype(int)
        apart = [np.abs(view - crop).mean() for crop in crops]
        # Of noise, every other crop is far off; tests/test_data_resize.py has the resampler's own.
        assert sorted(apart)[0] < 1 < 10 < sorted(apart)[1]
        offsets.append(int(np.argmin(apart)))
    # 0.001: the chance that a right sampler would have failed when the seed was chosen.
    assert stats.chisquare(np.bincount(offsets, minlength=17)).pvalue > 0.001


def test_weak_view_of_a_square_image_is_the_evaluation_view():
    image = _image(50, 50)
    weak = views.weak_view(np.asarray(image), image_size=32, rng=np.random.default_rng(0))
    whole = views.evaluation_view(image, image_size=32)
    assert np.abs(weak.astype(int) - whole).mean() < 1


@pytest.mark.parametrize("turned", [False, True])
def test_a_hair_line_is_cut_before_it_is_resized(turned):
    pixels = np.zeros((2, 6000, 3), np.uint8)
    pixels[:, 3000:] = 255
    image = Image.fromarray(pixels.transpose(1, 0, 2) if turned else pixels)
    view = views.evaluation_view(image, image_size=224)
    view = view if not turned else view.transpose(1, 0, 2)
    assert view.shape == (224, 224, 3)
    assert view[:, :50].max() == 0
    assert view[:, -50:].min() == 255
    rng = np.random.default_rng(0)
    means = [views.weak_view(np.asarray(image), image_size=224, rng=rng).mean() for _ in range(40)]
    assert {0.0, 255.0} <= set(means)


@pytest.fixture(scope="module")
def timm_crop():
    """Timm's own drawing of a crop: only that function, since its file imports torchvision."""
    (folder,) = importlib.util.find_spec("timm").submodule_search_locations
    tree = ast.parse((pathlib.Path(folder) / "data" / "transforms.py").read_text())
    (function,) = (
        node
        for parent in tree.body
        if isinstance(parent, ast.ClassDef) and parent.name == "RandomResizedCropAndInterpolation"
        for node in parent.body
        if isinstance(node, ast.FunctionDef) and node.name == "get_params"
    )
    function.decorator_list = []
    sizes = types.SimpleNamespace(get_image_size=lambda size: size)
    names = {"random": random, "math": math, "F": sizes}
    exec(compile(ast.Module([function], []), "timm", "exec"), names)

    def crop(width, height, area):
        top, left, crop_height, crop_width = names["get_params"](
            (width, height), area, views.ASPECT_RANGE
        )
        return left, top, left + crop_width, top + crop_height

    return crop


@pytest.mark.parity
@pytest.mark.parametrize(
    ("width", "height", "area"),
    [(500, 375, (0.3, 1.0)), (375, 500, (0.08, 1.0)), (600, 220, (0.3, 1.0)), (32, 32, (0.5, 0.9))],
)
def test_crops_are_distributed_as_timms(timm_crop, width, height, area):
    random.seed(1)
    rng = np.random.default_rng(1)
    theirs = np.array([timm_crop(width, height, area) for _ in range(4000)])
    ours = np.array(
        [views.draw_crop(rng, width=width, height=height, crop_area=area) for _ in range(4000)]
    )
    for boxes in (ours, theirs):
        left, top, right, bottom = boxes.T
        assert left.min() >= 0
        assert top.min() >= 0
        assert right.max() <= width
        assert bottom.max() <= height

    def measures(boxes):
        left, top, right, bottom = boxes.T
        wide, high = right - left, bottom - top
        # Where the box lies within the room that it has: not a function of its size.
        across = np.where(wide < width, left / np.maximum(width - wide, 1), 0.5)
        down = np.where(high < height, top / np.maximum(height - high, 1), 0.5)
        return {"area": wide * high, "aspect": wide / high, "across": across, "down": down}

    mine, other = measures(ours), measures(theirs)
    for name in mine:
        # 0.001: the chance that a right sampler would have failed when the seed was chosen.
        assert stats.ks_2samp(mine[name], other[name]).pvalue > 0.001, name


@pytest.mark.parity
@pytest.mark.parametrize(
    ("width", "height"), [(1000, 10), (10, 1000), (300, 31), (31, 300), (1, 90), (90, 1)]
)
def test_crops_of_long_images_fall_back_to_timms_centre(timm_crop, width, height):
    rng = np.random.default_rng(0)
    ours = views.draw_crop(rng, width=width, height=height, crop_area=(0.9, 1.0))
    assert ours == timm_crop(width, height, (0.9, 1.0))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 2), (2, 1), (3, 2), (1, 40)])
def test_tiny_images_have_all_views(width, height):
    image = _image(width, height)
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert _strong(image, rng).shape == (32, 32, 3)
        assert views.weak_view(np.asarray(image), image_size=32, rng=rng).shape == (32, 32, 3)


def test_strong_view_crops_then_flips_then_augments():
    image = _image(70, 50)
    applied = set()
    for seed in range(60):
        view = _strong(image, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        box = views.draw_crop(rng, width=70, height=50, crop_area=(0.3, 1.0))
        expected = Image.fromarray(resized(np.asarray(image), (32, 32), box=box))
        if rng.random() < 0.5:
            expected = Image.fromarray(np.asarray(expected)[:, ::-1])
        for name, argument in randaugment.RandAugment().draw(rng):
            applied.add(name)
            expected = randaugment.apply(expected, name=name, argument=argument, fill_color=FILL)
        assert view.dtype == np.uint8
        np.testing.assert_array_equal(view, np.asarray(expected))
    assert applied == set(randaugment.OPERATIONS)


def test_flip_probability():
    image, off = _image(40, 40), randaugment.RandAugment(num_ops=0)

    def view(seed, probability):
        rng = np.random.default_rng(seed)
        return _strong(image, rng, flip_probability=probability, rand_augment=off)

    flipped = 0
    for seed in range(400):
        never, always, half = (view(seed, probability) for probability in (0.0, 1.0, 0.5))
        np.testing.assert_array_equal(always, never[:, ::-1])
        flipped += np.array_equal(half, always)
    assert stats.binomtest(flipped, 400).pvalue > 0.001


def test_views_leave_the_image_alone():
    image = _image(60, 40)
    before = np.array(image)
    rng = np.random.default_rng(0)
    for _ in range(10):
        _strong(image, rng)
    views.weak_view(np.asarray(image), image_size=32, rng=rng)
    np.testing.assert_array_equal(np.asarray(image), before)
