"""Time of the whole training step, on random images and weights of the true shapes.

    python benchmarks/step_time.py

For the digits configuration and for ViT-B/16 at 224 pixels: seconds to compile, median and range of
a step, images per second. The data pipeline is not in it.
"""

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from must_jax import sharding
from must_jax.models import VisionSpec, VisionTransformer
from must_jax.optimizer import cosine_schedule, ema_decay_schedule, make_optimizer
from must_jax.state import init_params, init_state
from must_jax.train_step import Method, train_step

TOWER = {"activation": "quick_gelu", "layer_norm_eps": 1e-5}
DIGITS = VisionSpec(
    image_size=32, patch_size=8, width=128, depth=4, num_heads=4, mlp_dim=512, **TOWER
)
VIT_B16 = VisionSpec(
    image_size=224, patch_size=16, width=768, depth=12, num_heads=12, mlp_dim=3072, **TOWER
)
CONFIGURATIONS = {  # name: (tower, embedding width, classes, batch, blocks masked of a side)
    "digits": (DIGITS, 64, 10, 64, 4),
    "vit_b16": (VIT_B16, 512, 1000, 4, 7),
}


def random_batch(spec: VisionSpec, *, batch_size: int, blocks: int) -> dict[str, np.ndarray]:
    """A batch of noise in which three of ten blocks are masked."""
    rng = np.random.default_rng(0)
    shape = (batch_size, spec.image_size, spec.image_size, 3)
    masked = np.argsort(rng.random((batch_size, blocks**2)), axis=1) < -(-3 * blocks**2 // 10)
    grid = masked.reshape(batch_size, blocks, blocks)
    side = spec.grid_size // blocks
    return {
        "image_weak": rng.integers(0, 256, shape, np.uint8),
        "image_strong": rng.integers(0, 256, shape, np.uint8),
        "patch_mask": grid.repeat(side, axis=1).repeat(side, axis=2).reshape(batch_size, -1),
    }


def measure(name: str, *, steps: int, dtype: str, batch_size: int | None) -> str:
    """Compiles and runs the step of a configuration; returns the line to print."""
    spec, embed_dim, num_classes, default_batch_size, blocks = CONFIGURATIONS[name]
    batch_size = batch_size or default_batch_size
    model = VisionTransformer(spec, embed_dim, num_classes=num_classes, dtype=jnp.dtype(dtype))
    mesh = sharding.make_mesh()
    params = jax.jit(functools.partial(init_params, model))(jax.random.key(0))
    learning_rate = cosine_schedule(
        learning_rate=2e-5, min_learning_rate=1e-6, batch_size=batch_size, num_steps=10_000
    )
    optimizer = make_optimizer(params, schedule=learning_rate, weight_decay=0.05, layer_decay=0.65)
    state = sharding.replicate(init_state(params, optimizer=optimizer), mesh)
    batch = sharding.to_mesh(random_batch(spec, batch_size=batch_size, blocks=blocks), mesh)
    step = functools.partial(
        train_step,
        model=model,
        method=Method(
            confidence_threshold=0.0,
            self_train_weight=1.0,
            fair_weight=1.0,
            mim_weight=1.0,
            align_weight=0.2,
            steps_per_epoch=10_000,
            image_mean=(0.48, 0.46, 0.41),
            image_std=(0.27, 0.26, 0.28),
        ),
        optimizer=optimizer,
        learning_rate=learning_rate,
        ema_decay=ema_decay_schedule(initial=0.999, final=0.9998, warmup_steps=2000),
    )
    started = time.perf_counter()
    compiled = (
        jax.jit(step, donate_argnums=0, out_shardings=sharding.replicated(mesh))
        .lower(state, batch)
        .compile()
    )
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
