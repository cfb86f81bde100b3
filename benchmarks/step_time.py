"""Time of the whole training step, on random images and weights of the true shapes.

    python benchmarks/step_time.py

For `configs/digits.py`, and for `configs/imagenet.py` (ViT-B/16) with 4 images: seconds to compile,
median and range of a step, images per second. The data pipeline is not in it.
"""

import argparse
import dataclasses
import functools
import importlib.util
import pathlib
import statistics
import time

import jax
import numpy as np

from must_jax import sharding
from must_jax.class_names import ClassNames
from must_jax.compile import first_state, jit_train_step
from must_jax.data.masking import draw_patch_mask
from must_jax.experiment import Experiment
from must_jax.models import VisionSpec
from must_jax.planning.shapes import TOWER, without_text
from must_jax.state import init_params, init_state

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


@dataclasses.dataclass(frozen=True)
class Configuration:
    """A config file and the sizes that its checkpoint and data would give."""

    file: str
    vision: VisionSpec
    embed_dim: int
    num_classes: int
    batch_size: int


CONFIGURATIONS = {
    "digits": Configuration(
        "digits.py",
        VisionSpec(
            image_size=32, patch_size=8, width=128, depth=4, num_heads=4, mlp_dim=512, **TOWER
        ),
        embed_dim=64,
        num_classes=10,
        batch_size=64,
    ),
    "vit_b16": Configuration(
        "imagenet.py",
        VisionSpec(
            image_size=224, patch_size=16, width=768, depth=12, num_heads=12, mlp_dim=3072, **TOWER
        ),
        embed_dim=512,
        num_classes=1000,
        batch_size=4,
    ),
}


def load_experiment(configuration: Configuration, *, batch_size: int, dtype: str) -> Experiment:
    """The experiment of a config file, without the checkpoint that it names."""
    spec = importlib.util.spec_from_file_location("config", CONFIGS / configuration.file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.batch_size = batch_size
    config.dtype = dtype
    return Experiment(
        config=config,
        spec=without_text(configuration.vision, embed_dim=configuration.embed_dim),
        clip_params={},
        tokenizer=None,
        classes=ClassNames(tuple((str(i),) for i in range(configuration.num_classes))),
        templates=(),
    )


def random_batch(experiment: Experiment) -> dict[str, np.ndarray]:
    """A batch of noise, masked as the config says."""
    config, vision = experiment.config, experiment.spec.vision
    rng = np.random.default_rng(0)
    shape = (config.batch_size, vision.image_size, vision.image_size, 3)
    masks = [
        draw_patch_mask(
            rng,
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            mask_patch_size=config.mask_patch_size,
            mask_ratio=config.mask_ratio,
        )
        for _ in range(config.batch_size)
    ]
    return {
        "image_weak": rng.integers(0, 256, shape, np.uint8),
        "image_strong": rng.integers(0, 256, shape, np.uint8),
        "patch_mask": np.stack(masks),
    }


def measure(name: str, *, steps: int, dtype: str, batch_size: int | None) -> str:
    """Compiles and runs the step of a configuration; returns the line to print."""
    configuration = CONFIGURATIONS[name]
    batch_size = batch_size or configuration.batch_size
    experiment = load_experiment(configuration, batch_size=batch_size, dtype=dtype)
    mesh = sharding.make_mesh()
    params = jax.jit(functools.partial(init_params, experiment.model))(jax.random.key(0))
    keywords = experiment.step_keywords(params, steps_per_epoch=10_000)
    init = functools.partial(init_state, optimizer=keywords["optimizer"])
    state = first_state(mesh, params, init=init)
    batch = sharding.to_mesh(random_batch(experiment), mesh)
    step = jit_train_step(mesh, params, **keywords)
    started = time.perf_counter()
    compiled = step.lower(state, batch).compile()
    compile_seconds = time.perf_counter() - started
    seconds = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        state, _ = compiled(state, batch)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - started)
    seconds = seconds[1:]  # the first one touches all memory for the first time
    median = statistics.median(seconds)
    return (
        f"{name:8} batch {batch_size:4} {dtype:8} compile {compile_seconds:6.1f} s"
        f"  step {1e3 * median:8.1f} ms ({1e3 * min(seconds):.1f} to {1e3 * max(seconds):.1f})"
        f"  {batch_size / median:7.1f} images/s"
    )


def main() -> None:
    """Prints the machine and a line a configuration."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--configuration", choices=CONFIGURATIONS, action="append")
    parser.add_argument("--steps", type=int, default=7, help="steps that count")
    parser.add_argument("--batch_size", type=int, help="instead of the configuration's own")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    args = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.device_count()} x {jax.devices()[0].device_kind}")
    for name in args.configuration or CONFIGURATIONS:
        print(measure(name, steps=args.steps, dtype=args.dtype, batch_size=args.batch_size))


if __name__ == "__main__":
    main()
