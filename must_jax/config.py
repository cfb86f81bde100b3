"""The fields of a run, their defaults, and what they must satisfy."""

import difflib
import json
from collections.abc import Iterator
from typing import Any

import ml_collections

from must_jax.errors import UserError
from must_jax.local_files import read_text

LARGEST_INT = 2**31 - 1  # of what is counted in arrays: steps, images
# Of what arrays compute with in float32, which holds twice the largest one.
LARGEST_FLOAT, SMALLEST_FLOAT = 2.0**127, 2.0**-126
# What numbers may be, from and to. Of what takes memory or threads, more than anybody has use for.
RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, 8192),
    "batch_size": (1, 2**20),
    "grad_accumulation": (1, 2**20),
    "epochs": (1, LARGEST_INT),
    "learning_rate": (0, LARGEST_FLOAT),
    "min_learning_rate": (0, LARGEST_FLOAT),
    "weight_decay": (0, LARGEST_FLOAT),
    "layer_decay": (0, 1),
    "confidence_threshold": (0, 1),
    "ema_decay_initial": (0, 1),
    "ema_decay": (0, 1),
    "ema_warmup_steps": (0, LARGEST_INT),
    "mask_patch_size": (1, 8192),
    "mask_ratio": (0, 1),
    "self_train_weight": (0, LARGEST_FLOAT),
    "fair_weight": (0, LARGEST_FLOAT),
    "mim_weight": (0, LARGEST_FLOAT),
    "align_weight": (0, LARGEST_FLOAT),
    "strong_view.flip_probability": (0, 1),
    "strong_view.num_ops": (0, 100),
    "strong_view.magnitude": (0, 10),
    "strong_view.magnitude_std": (0, 100),
    "loader.num_threads": (0, 1024),
    "loader.num_workers": (0, 1024),
    "loader.prefetch": (0, 1024),
    "loader.max_failed_fraction": (0, 1),
    "log_every_steps": (1, LARGEST_INT),
    "eval_every_epochs": (1, LARGEST_INT),
    "probe_images": (1, LARGEST_INT),
    "checkpoint_every_epochs": (1, LARGEST_INT),
    "checkpoint_every_steps": (0, LARGEST_INT),
    "checkpoints_to_keep": (1, LARGEST_INT),
    "max_nonfinite_steps": (3, LARGEST_INT),
    "expected.zeroshot": (0, 100),
    "expected.adapted": (0, 100),
}


def default_config() -> ml_collections.ConfigDict:
    """All fields, with the defaults of the published ViT-B/16 ImageNet recipe.

    A file in `configs/` starts from this and sets what differs. No field can be added.
    """
    config = ml_collections.ConfigDict()
    config.seed = 0  # order of records, views, masks and fresh parameters
    config.checkpoint = ""  # folder that tools/convert_clip_weights.py wrote

    config.dataset = ml_collections.ConfigDict()
    config.dataset.train = ""  # images, labels not needed: docs/data.md
    config.dataset.test = ""  # labelled images; empty: no evaluation
    config.dataset.image_field = ""  # column, feature or ending of the image; empty: usual ones
    config.dataset.label_field = ""  # likewise of the label
    config.dataset.tfds = ""  # TFDS name, such as food101; train and test are then its splits
    config.dataset.data_dir = ""  # where TFDS data sets lie; empty: TFDS's own place
    config.dataset.class_names = ""  # file: docs/names.md
    config.dataset.templates = ""  # file, a prompt with a slot {} on each line
    config.dataset.descriptions = ""  # file, sentences of each class; empty: templates alone

    config.image_size = 224  # pixels; position embeddings are resampled to it
    config.dtype = "float32"  # or bfloat16; of the towers' arithmetic, parameters stay float32
    config.batch_size = 1024  # global
    config.mesh = ml_collections.ConfigDict()  # sizes whose product is the devices: docs/scaling.md
    config.mesh.data = -1  # copies of the state; one size may be -1, the rest of the devices
    config.mesh.fsdp = 1  # parts that parameters, teacher and optimizer state are split into
    config.mesh.model = 1  # parts that attention heads and MLPs are split into
    config.grad_accumulation = 1  # parts of a batch, one after the other: memory for time
    config.remat = "light"  # what the backward pass computes anew: none, light or full
    config.scan_layers = True  # one compiled body for all layers; False compiles much longer
    config.epochs = 30
    config.learning_rate = 2e-5  # for a batch of 256, grows in proportion
    config.min_learning_rate = 1e-6  # likewise
    config.weight_decay = 0.05
    config.layer_decay = 0.65  # factor on the rate from a layer to the one below it

    config.confidence_threshold = 0.7
    config.ema_decay_initial = 0.999
    config.ema_decay = 0.9998
    config.ema_warmup_steps = 2000
    config.mask_patch_size = 32  # pixels, side of a block that is masked as one
    config.mask_ratio = 0.3
    config.self_train_weight = 1.0
    config.fair_weight = 1.0
    config.mim_weight = 1.0
    config.align_weight = 0.2

    config.strong_view = ml_collections.ConfigDict()
    config.strong_view.crop_area = (0.3, 1.0)  # share of the image
    config.strong_view.flip_probability = 0.5
    config.strong_view.num_ops = 2  # RandAugment: operations drawn per image
    config.strong_view.magnitude = 9.0  # of 10
    config.strong_view.magnitude_std = 0.5

    config.loader = ml_collections.ConfigDict()
    config.loader.num_threads = 16
    config.loader.num_workers = 0  # further processes, each with that many threads
    config.loader.prefetch = 4  # batches
    config.loader.max_failed_fraction = 0.01  # of the images; more that don't decode end the run

    config.log_every_steps = 50
    config.eval_every_epochs = 1
    config.probe_images = 2048  # for training, predicted at evaluations: quality without labels
    config.eval_metric = "top1"  # or mean_per_class; which of the two leads in what is printed
    config.checkpoint_every_epochs = 1
    config.checkpoint_every_steps = 1000  # within epochs too; 0: at their ends alone
    config.checkpoints_to_keep = 2  # the last ones; one is what a damaged one is passed over for
    config.keep_chosen = True  # and that of the evaluation that is best without labels
    config.grace_seconds = 25.0  # that a run has to save and end when it is asked to stop
    config.max_nonfinite_steps = 10  # in a row, each of which is skipped; then the run ends

    config.expected = ml_collections.ConfigDict()  # what was published, to compare with; 0: unknown
    config.expected.zeroshot = 0.0  # percent, by eval_metric
    config.expected.adapted = 0.0  # percent, of the epoch that scored best on the test labels
    return config.lock()


def flat_fields(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The fields with their dotted names."""
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from flat_fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def unknown_field(name: str) -> UserError:
    """The refusal of a dotted field name, with the nearest that exists."""
    fields = [known for known, _ in flat_fields(default_config())]
    by_leaf = {known.rpartition(".")[2]: known for known in fields}
    nearest = difflib.get_close_matches(name, fields, 1, 0.6) or [
        by_leaf[leaf]
        for leaf in difflib.get_close_matches(name.rpartition(".")[2], list(by_leaf), 1, 0.6)
    ]
    hint = f"did you mean {nearest[0]}?" if nearest else "must_jax/config.py lists the fields"
    return UserError(f"config has no field {name}; {hint}")


def read_config(path: str) -> ml_collections.ConfigDict:
    """The config whose flat fields a run left as JSON.

    Raises:
      UserError: the file is missing, no such JSON, or has fields that are unknown or ill-typed.
    """
    try:
        values = dict(json.loads(read_text(path)))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); give --config instead") from error
    config = default_config()
    defaults = dict(flat_fields(config))
    for name, value in values.items():
        if name not in defaults:
            raise unknown_field(name)
        if isinstance(defaults[name], tuple) and isinstance(value, list):
            value = tuple(value)
        try:
            config.update_from_flattened_dict({name: value})
        except TypeError as error:
            raise UserError(f"{path}: {name} is {_shown(value)}; give --config instead") from error
    return config


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # Python writes no integer of thousands of digits
        return "a number of thousands of digits"


def check_config(config: ml_collections.ConfigDict) -> None:
    """Refuses fields that are unknown, of another type or out of range.

    Raises:
      UserError: names the first field at fault, its value, and what it must be.
    """
    defaults = dict(flat_fields(default_config()))
    values = dict(flat_fields(config))
    for name, value in values.items():
        if name not in defaults:
            raise unknown_field(name)
        expected = type(defaults[name])
        if type(value) is not expected:
            raise UserError(
                f"config.{name} is {_shown(value)}, of type {type(value).__name__}; "
                f"it must be of type {expected.__name__}"
            )
    for name in defaults:
        if name not in values:
            raise UserError(f"config.{name} is missing; start from must_jax.config.default_config")

    def require(name: str, condition: bool, rule: str) -> None:
        if not condition:
            raise UserError(f"config.{name} is {_shown(values[name])}; it must be {rule}")

    for name in ("checkpoint", "dataset.train", "dataset.class_names"):
        require(name, values[name] != "", "a path")
    require(
        "dataset.templates",
        values["dataset.templates"] != "" or values["dataset.descriptions"] != "",
        "a path, or dataset.descriptions must be",
    )
    for name, (low, high) in RANGES.items():
        shown = f"{high:.2g} (float32)" if high == LARGEST_FLOAT else f"{high}"
        require(name, low <= values[name] <= high, f"from {low} to {shown}")
    for name, value in values.items():
        numbers = value if isinstance(value, tuple) else (value,)
        fits = all(_fits_float32(number) for number in numbers if isinstance(number, float))
        require(name, fits, f"0, or from {SMALLEST_FLOAT:.2g} to {LARGEST_FLOAT:.2g} (float32)")
    require("grace_seconds", 0 < values["grace_seconds"] < 1e6, "positive, in seconds")
    require("seed", 0 <= values["seed"] < 2**32, "from 0 to 2**32 - 1")
    for name in ("learning_rate", "min_learning_rate"):
        most = LARGEST_FLOAT / max(1, values["batch_size"] / 256)
        require(name, values[name] <= most, f"at most {most:.2g} for such a batch_size (float32)")
    area = values["strong_view.crop_area"]
    require(
        "strong_view.crop_area",
        len(area) == 2
        and all(isinstance(share, float | int) for share in area)
        and 0 < area[0] <= area[1] <= 1,
        "two shares of the image, the smaller first",
    )
    for name in ("mesh.data", "mesh.fsdp", "mesh.model"):
        fits = 0 < values[name] <= LARGEST_INT or values[name] == -1
        require(name, fits, f"from 1 to {LARGEST_INT}, or -1")
    metrics = ("top1", "mean_per_class")
    require("eval_metric", values["eval_metric"] in metrics, " or ".join(metrics))
    require("remat", values["remat"] in ("none", "light", "full"), "none, light or full")
    require("dtype", values["dtype"] in ("float32", "bfloat16"), "float32 or bfloat16")
    require(
        "mask_patch_size",
        values["image_size"] % values["mask_patch_size"] == 0,
        f"a divisor of image_size {values['image_size']}",
    )


def _fits_float32(number: float) -> bool:
    return number == 0 or SMALLEST_FLOAT <= abs(number) <= LARGEST_FLOAT


def check_patches(config: ml_collections.ConfigDict, *, patch_size: int) -> None:
    """Refuses image and mask sizes that the checkpoint's patches don't fill.

    Raises:
      UserError: names the field, its value, and the nearest that fit.
    """
    for name in ("image_size", "mask_patch_size"):
        value = config[name]
        if value % patch_size:
            below = value // patch_size * patch_size
            raise UserError(
                f"config.{name} is {value}; it must be a multiple of the checkpoint's patch size "
                f"{patch_size}, such as {below or below + patch_size} or {below + patch_size}"
            )


def check_model_axis(config: ml_collections.ConfigDict, *, size: int, heads: int, mlp: int) -> None:
    """Refuses a `model` axis of a size that does not divide the attention heads or the MLP.

    Raises:
      UserError: names the size and what it must divide.
    """
    if heads % size or mlp % size:
        raise UserError(
            f"config.mesh.model is {config.mesh.model}, and the model axis has {size} parts; they "
            f"must divide the checkpoint's {heads} attention heads and {mlp} MLP units"
        )


def check_batch(config: ml_collections.ConfigDict, *, num_images: int, num_devices: int) -> None:
    """Refuses a batch that the devices don't divide or the data set can't fill, and too many steps.

    Args:
      num_images: of the data set.
      num_devices: along the axes that the batch is split over.

    Raises:
      UserError: names the field, what it doesn't fit, and what would.
    """
    batch, parts = config.batch_size, config.grad_accumulation
    multiple = num_devices * parts
    if batch % multiple:
        below = batch // multiple * multiple
        fitting = f"{below} or {below + multiple}" if below else f"{multiple}"
        times = f" times {parts} (config.grad_accumulation)" if parts > 1 else ""
        raise UserError(
            f"config.batch_size is {batch}, which {num_devices} devices{times} don't divide; "
            f"it must be a multiple, such as {fitting}"
        )
    if batch > num_images:
        raise UserError(
            f"config.batch_size is {batch}, more than the {num_images} images of "
            f"{config.dataset.train}; it must be at most that"
        )
    most = LARGEST_INT // (num_images // batch)
    if config.epochs > most:
        raise UserError(
            f"config.epochs is {config.epochs}, of {num_images // batch} steps each; it must be at "
            f"most {most}, for steps are counted up to 2**31 - 1"
        )
