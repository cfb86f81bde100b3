"""Fields and their refusals."""

import copy
import importlib.util
import pathlib

import pytest

from must_jax import config as config_lib
from must_jax.errors import UserError

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.fixture
def config():
    fields = config_lib.default_config()
    fields.checkpoint = "clip"
    fields.dataset.train = "train"
    fields.dataset.class_names = "names"
    fields.dataset.templates = "templates"
    return fields


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_passes_its_own_checks(path, monkeypatch):
    monkeypatch.syspath_prepend(path.parents[1])
    config_lib.check_config(load(path))


def test_a_new_field_can_not_be_added(config):
    with pytest.raises(AttributeError, match="batch_size"):
        config.batch_siz = 3


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("batchsize", "batch_size"),
        ("lerning_rate", "learning_rate"),
        ("crop_area", "strong_view.crop_area"),
        ("dataset.trian", "dataset.train"),
        ("loader.num_thread", "loader.num_threads"),
    ],
)
def test_unknown_fields_are_told_the_nearest(name, nearest):
    assert f"did you mean {nearest}?" in str(config_lib.unknown_field(name))


def test_a_name_like_no_other_gets_no_guess():
    assert "did you mean" not in str(config_lib.unknown_field("zzzzzz"))


def test_a_field_of_another_type_is_refused(config):
    with config.unlocked(), config.ignore_type():
        config.batch_size = "many"
    with pytest.raises(UserError, match=r"batch_size is 'many'.*type str.*type int"):
        config_lib.check_config(config)


def test_an_unknown_field_is_refused(config):
    with config.unlocked():
        config.mask_rato = 0.5
    with pytest.raises(UserError, match="mask_rato; did you mean mask_ratio"):
        config_lib.check_config(config)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("checkpoint", ""),
        ("dataset.train", ""),
        ("batch_size", 0),
        ("epochs", 0),
        ("mask_ratio", 1.5),
        ("mask_ratio", float("nan")),
        ("learning_rate", -1.0),
        ("learning_rate", float("inf")),
        ("weight_decay", float("nan")),
        ("confidence_threshold", -0.1),
        ("strong_view.crop_area", (0.5, 0.4)),
        ("strong_view.crop_area", (0.0, 1.0)),
        ("strong_view.crop_area", (0.5,)),
        ("strong_view.crop_area", ("a", "b")),
        ("strong_view.magnitude", 11.0),
        ("dtype", "float16"),
        ("dataset.templates", ""),
        ("eval_metric", "recall"),
        ("expected.zeroshot", 101.0),
        ("expected.adapted", -1.0),
        ("mask_patch_size", 33),
        ("epochs", 2**31),
        ("epochs", 10**20),
        ("ema_warmup_steps", 10**20),
        ("checkpoint_every_steps", 2**31),
        ("image_size", 2**20),
        ("batch_size", 2**21),
        ("mesh.data", 2**31),
        ("loader.num_threads", 1025),
        ("loader.prefetch", 10**20),
        ("strong_view.num_ops", 10**20),
        ("strong_view.magnitude_std", 1e300),
        ("strong_view.crop_area", (1e-300, 1.0)),
        ("self_train_weight", 1e300),
        ("weight_decay", 1e-50),
        ("learning_rate", 1e300),
        ("learning_rate", 5e37),  # for a batch of 1024
        ("max_nonfinite_steps", 2),
    ],
)
def test_values_out_of_range_are_refused_by_name(config, name, value):
    config.update_from_flattened_dict({name: value})
    with pytest.raises(UserError, match=f"config.{name} is ") as refusal:
        config_lib.check_config(config)
    assert "\n" not in str(refusal.value)


def test_all_numbers_have_a_range(config):
    for name, default in config_lib.flat_fields(config):
        if type(default) not in (int, float):
            continue
        for value in (-2, 10**400) if type(default) is int else (-2.0, 1e300):
            changed = copy.deepcopy(config)
            changed.update_from_flattened_dict({name: value})
            with pytest.raises(UserError, match=f"config.{name} is "):
                config_lib.check_config(changed)


def test_the_ends_of_ranges_are_within(config):
    for name, ends in config_lib.RANGES.items():
        for end in ends:
            changed = copy.deepcopy(config)
            changed.batch_size = 256  # by which rates grow, beyond it
            changed.update_from_flattened_dict({name: type(field_of(config, name))(end)})
            if name in ("image_size", "mask_patch_size"):
                changed.image_size = changed.mask_patch_size = int(end)
            config_lib.check_config(changed)


def field_of(config, name):
    return dict(config_lib.flat_fields(config))[name]


def test_a_number_that_python_does_not_write_is_refused(config):
    config.seed = 10**5000
    with pytest.raises(UserError, match=r"config.seed is a number of thousands of digits"):
        config_lib.check_config(config)


@pytest.mark.parametrize(("field", "value"), [("image_size", 225), ("mask_patch_size", 40)])
def test_sizes_that_patches_do_not_fill_are_refused(config, field, value):
    config[field] = value
    with pytest.raises(UserError, match=f"{field} is {value}.*patch size 16"):
        config_lib.check_patches(config, patch_size=16)


def test_batches_must_be_divided_by_the_devices_and_filled_by_the_images(config):
    config.batch_size = 100
    with pytest.raises(UserError, match=r"100, which 8 devices don't divide.* 96 or 104"):
        config_lib.check_batch(config, num_images=1000, num_devices=8)
    with pytest.raises(UserError, match="100, more than the 99 images of train"):
        config_lib.check_batch(config, num_images=99, num_devices=4)
    config_lib.check_batch(config, num_images=100, num_devices=4)


def test_more_steps_than_are_counted_are_refused(config):
    config.batch_size, config.epochs = 100, (2**31 - 1) // 3
    config_lib.check_batch(config, num_images=399, num_devices=1)
    config.epochs += 1
    with pytest.raises(UserError, match=r"epochs is 715827883, of 3 steps .* at most 715827882"):
        config_lib.check_batch(config, num_images=399, num_devices=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("[1]", "cannot be read"),
        ('{"batch_siz": 3}', "did you mean batch_size"),
        ('{"batch_size": "many"}', "batch_size is 'many'"),
        ('{"strong_view.crop_area": 0.5}', "crop_area is 0.5"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_a_saved_config_that_does_not_load_is_refused(tmp_path, text, message):
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        config_lib.read_config(str(path))
