"""What a checkpoint costs the steps: how long `Checkpoints.save` keeps the loop, and the disk.

    python benchmarks/saving.py

The state of a ViT-B/16 with 1,000 classes (student, teacher, optimizer), on one device. The loop
waits until the arrays are copied; they are written while it goes on.
"""

import os
import pathlib
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import step_time

from must_jax import sharding
from must_jax.checkpoint_writer import Checkpoints
from must_jax.models import VisionTransformer
from must_jax.optimizer import make_optimizer
from must_jax.state import init_params, init_state

SAVES = 5


def make_state() -> object:
    spec = step_time.CONFIGURATIONS["vit_b16"].vision
    params = jax.jit(lambda key: init_params(VisionTransformer(spec, 512, num_classes=1000), key))(
        jax.random.key(0)
    )
    optimizer = make_optimizer(params, schedule=lambda _: 1e-4, weight_decay=0.05, layer_decay=0.65)
    return init_state(params, optimizer=optimizer)


def main() -> None:
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    state = make_state()
    state = sharding.put(state, sharding.state_shardings(mesh, state))
    size = sum(array.nbytes for array in jax.tree.leaves(state))
    kept, written = [], []
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(folder, to_keep=1, step=0)
        for step in range(1, SAVES + 2):
            jax.block_until_ready(state)
            start = time.perf_counter()
            checkpoints.save(state, step=step, notes={})
            middle = time.perf_counter()
            # A step may go on with the arrays at once.
            state = jax.block_until_ready(jax.tree.map(lambda a: a + jnp.ones_like(a), state))
            checkpoints.finish()
            if step > 1:  # the first one compiles checksums
                kept.append(middle - start)
                written.append(time.perf_counter() - start)
        checkpoints.close()
        on_disk = sum(p.stat().st_size for p in pathlib.Path(folder).rglob("*") if p.is_file())
    print(
        f"state of {size / 2**30:.2f} GiB, {on_disk / 2**30:.2f} GiB on disk: the loop waits "
        f"{np.median(kept):.2f} s ({min(kept):.2f} to {max(kept):.2f}), written after "
        f"{np.median(written):.1f} s; ratio {np.median(kept) / np.median(written):.2f}"
    )


if __name__ == "__main__":
    main()
