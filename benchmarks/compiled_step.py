"""What the TPU compiler makes of the training step, beside a step on flax's own layers.

    pip install -c constraints.txt -e '.[plan]'
    python benchmarks/compiled_step.py

Compiles for chips that are not here (v5e:4x4; B/16 with 64 and L/14 with 32 images a chip, bf16):
FLOPs, bytes accessed and peak memory of one chip by the compiler's own analysis, which counts a
loop's body once, so both programs have their layers unrolled; then the step with its layers
scanned, which is what runs by default, for the time that compiling takes. Collectives are listed
for the batch split over all chips, and for the state split as well.
"""

import argparse
import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import time
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

import jax
import jax.numpy as jnp
import optax
from peer_step import Vit, make_step

from must_jax import sharding
from must_jax.compile import jit_train_step
from must_jax.config import default_config
from must_jax.planning import costs, hlo, shapes
from must_jax.planning.topology import open_topology
from must_jax.state import state_shapes

TOPOLOGY = "v5e:4x4"
IMAGES = {"b16": 64, "l14": 32}  # a chip
NUM_CLASSES = 1000
# FLOPs; and bytes and GiB of big_vision's ViT, compiled elsewhere with the same compiler.
PLAIN = {"b16": (9.04e12, 63.6e9, 4.78), "l14": (20.77e12, 141.6e9, 11.55)}
SENT = 1.02  # beside the gradient, a mean over K classes and scalars
REACH = {"b16": (0.96, 0.8, 0.8), "l14": (0.98, 0.8, 0.8)}


def experiment(model: str, *, batch_size: int, scan: bool, fsdp: int) -> Any:
    """The published recipe's step, without a checkpoint."""
    config = default_config()
    config.checkpoint = config.dataset.train = config.dataset.class_names = "none"
    config.dataset.templates = "none"
    config.dtype, config.batch_size, config.scan_layers = "bfloat16", batch_size, scan
    config.mask_patch_size = 32 if model == "b16" else 28
    config.mesh.fsdp = fsdp
    return shapes.plan_experiment(config, model=model, num_classes=NUM_CLASSES)


def compile_step(model: str, side: str) -> dict[str, Any]:
    """Compiles one program; `side` is unrolled, scanned, fsdp or peer."""
    topology = open_topology(TOPOLOGY)
    chips = len(topology.devices)
    batch_size = chips * IMAGES[model]
    run = experiment(
        model,
        batch_size=batch_size,
        scan=side in ("scanned", "fsdp"),
        fsdp=chips if side == "fsdp" else 1,
    )
    vision = run.spec.vision
    image = jax.ShapeDtypeStruct((batch_size, vision.image_size, vision.image_size, 3), jnp.uint8)
    mask = jax.ShapeDtypeStruct((batch_size, vision.num_patches), jnp.bool_)
    batch = {"image_weak": image, "image_strong": image, "patch_mask": mask}
    mesh = run.make_mesh(topology.devices)
    step: Any
    if side == "peer":
        peer = Vit(vision, run.spec.embed_dim, NUM_CLASSES)
        optimizer = optax.adamw(1e-5)
        pixels = jax.ShapeDtypeStruct((1, *image.shape[1:]), jnp.float32)
        one = jax.ShapeDtypeStruct((1, vision.num_patches), jnp.bool_)
        params = jax.eval_shape(peer.init, jax.random.key(0), pixels, one)["params"]
        state: Any = (params, params, jax.eval_shape(optimizer.init, params))
        whole, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
        step = jax.jit(
            make_step(peer, optimizer),
            in_shardings=(whole, rows),
            out_shardings=whole,
            donate_argnums=0,
        )
    else:
        params = run.student_shapes()
        keywords = run.step_keywords(params, steps_per_epoch=1000)
        state = state_shapes(params, optimizer=keywords["optimizer"])
        step = jit_train_step(mesh, params, **keywords)
    started = time.perf_counter()
    compiled = step.lower(state, batch).compile()
    seconds = time.perf_counter() - started
    analysis, program = compiled.cost_analysis(), hlo.parse(compiled.as_text())
    counted = costs.count(program)
    return {
        # In bf16, as it is reduced; norms and biases, in float32, are a hundredth more.
        "gradient": 2 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
        "flops": analysis["flops"],
        "products": counted.flops,
        "bytes": analysis["bytes accessed"],
        "peak": compiled.memory_analysis().peak_memory_in_bytes,
        "seconds": seconds,
        "collectives": [dataclasses.asdict(c) for c in counted.collectives],
        "overlapped": overlapped(program),
    }


def overlapped(program: hlo.Program) -> tuple[int, int]:
    """All-gathers that are spread over fusions that compute meanwhile; and all of them."""
    channels: dict[str, bool] = {}
    for run in hlo.executed(program):
        if run.instruction.opcode.startswith("all-gather"):
            channel = re.search(r"channel_id=(\d+)", run.instruction.attributes)
            name = channel[1] if channel else run.instruction.name
            is_async = run.is_fused or run.instruction.opcode.endswith("-start")
            channels[name] = channels.get(name, False) or is_async
    return sum(channels.values()), len(channels)


def measure(model: str, side: str) -> dict[str, Any]:
    """`compile_step` in a process of its own: no compilation profits from another."""
    command = [sys.executable, __file__, "--compile", model, side]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def row(name: str, ours: float, theirs: float, reach: float, unit: str) -> None:
    """Prints both sides and their ratio."""
    ratio = ours / theirs
    reached = "reached" if ratio <= reach else "NOT reached"
    told = f"{ours:.4g} against {theirs:.4g} {unit}"
    print(f"  {name:34} {told:38} {ratio:.3f}x, at most {reach:.3g}x: {reached}", flush=True)


def listed(result: dict[str, Any]) -> str:
    """Collectives in words."""
    return ", ".join(
        f"{c['count']} {c['kind']} ({c['num_bytes'] / 1e6:.1f} MB)" for c in result["collectives"]
    )


def main() -> None:
    """Prints every row for the models asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=IMAGES, action="append")
    parser.add_argument("--compile", nargs=2, metavar=("MODEL", "SIDE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.compile:
        print(json.dumps(compile_step(*args.compile)))
        return
    for model in args.model or IMAGES:
        print(f"{model} x {IMAGES[model]}, {TOPOLOGY}, bf16, jax {jax.__version__}", flush=True)
        ours, peer = measure(model, "unrolled"), measure(model, "peer")
        plain, told_bytes, told_peak = PLAIN[model]
        reach = REACH[model]
        gib = 2**30
        row("FLOPs, matrix products", ours["products"], plain, reach[0], "plain")
        row("FLOPs, all, against flax's layers", ours["flops"], peer["flops"], reach[0], "")
        row("bytes against flax's layers", ours["bytes"], peer["bytes"], reach[1], "")
        row("bytes against big_vision's", ours["bytes"], told_bytes, reach[1], "")
        row("GiB against flax's layers", ours["peak"] / gib, peer["peak"] / gib, reach[2], "")
        row("GiB against big_vision's", ours["peak"] / gib, told_peak, reach[2], "")
        scanned, fsdp = measure(model, "scanned"), measure(model, "fsdp")
        sent = [c["num_bytes"] for c in scanned["collectives"]]
        row(
            "MB in collectives against the gradient",
            sum(sent) / 1e6,
            scanned["gradient"] / 1e6,
            SENT,
            "",
        )
        row("compiling, scanned/unrolled", scanned["seconds"], ours["seconds"], 1 / 3, "s")
        print(
            f"  scanned: {scanned['peak'] / gib:.2f} GiB, {scanned['products']:.4g} FLOPs of "
            f"products\n  collectives, data: unrolled {listed(ours)}; scanned {listed(scanned)}"
            f"\n  collectives, fsdp: {listed(fsdp)}; {fsdp['overlapped'][0]} of "
            f"{fsdp['overlapped'][1]} all-gathers of the program are spread over compute",
            flush=True,
        )


if __name__ == "__main__":
    main()
