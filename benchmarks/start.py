"""Seconds from starting `must_jax.main` to its first step, compiled programs kept or not.

    python benchmarks/start.py

Cold: nothing was compiled before; warm: the same command again. For the digits, and for ViT-B/16 at
224 with random weights. Each start is a run of its own: imports, weights, class embeddings, what
zero-shot says of test images and of some training images, and the step. The ViT has one image a
step and one to look at, so that what it computes, in both starts, takes little. Starts take turns;
medians count.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import step_time

from must_jax.convert import TOKENIZER, read_converted_spec
from must_jax.convert.converted import write_converted
from must_jax.models import ClipSpec, TextTransformer, VisionTransformer

ROOT = pathlib.Path(__file__).parents[1]
WANTED = 1 / 3
FIRST_STEP = "step 1/"


def prepare_digits(folder: pathlib.Path) -> list[str]:
    """The digits and their CLIP under `folder`; the flags of a run on them."""
    for tool in (
        ["prepare_digits.py", folder / "digits"],
        ["convert_clip_weights.py", ROOT / "assets/digits_clip", folder / "clip"],
    ):
        command = [sys.executable, ROOT / "tools" / tool[0], *tool[1:]]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    return [
        f"--config={ROOT}/configs/digits.py",
        f"--config.checkpoint={folder}/clip",
        f"--config.dataset.train={folder}/digits/train",
        f"--config.dataset.test={folder}/digits/test",
        f"--config.dataset.class_names={folder}/digits/classes.txt",
        f"--config.dataset.templates={folder}/digits/templates.txt",
    ]


def prepare_vit_b16(folder: pathlib.Path) -> list[str]:
    """A ViT-B/16 with random weights beside the text tower's shapes and tokenizer of the digits."""
    vision = step_time.CONFIGURATIONS["vit_b16"].vision
    small = read_converted_spec(folder / "clip")
    spec = ClipSpec(
        vision=vision,
        text=small.text,
        embed_dim=step_time.CONFIGURATIONS["vit_b16"].embed_dim,
        logit_scale=small.logit_scale,
        image_mean=small.image_mean,
        image_std=small.image_std,
    )
    image = np.zeros((1, vision.image_size, vision.image_size, 3), np.float32)
    ids = np.zeros((1, spec.text.context_length), np.int32)
    towers = {
        "vision": (VisionTransformer(spec.vision, spec.embed_dim), image),
        "text": (TextTransformer(spec.text, spec.embed_dim), ids),
    }
    params = {
        name: jax.jit(tower.init)(jax.random.key(0), inputs)["params"]
        for name, (tower, inputs) in towers.items()
    }
    (folder / "vit_b16").mkdir()
    shutil.copytree(folder / "clip" / TOKENIZER, folder / "vit_b16" / TOKENIZER)
    write_converted(
        folder / "vit_b16", spec=spec, params=jax.device_get(params), source="random weights"
    )
    return [
        f"--config={ROOT}/configs/imagenet.py",
        f"--config.checkpoint={folder}/vit_b16",
        f"--config.dataset.train={folder}/digits/train",
        "--config.dataset.test=",
        f"--config.dataset.class_names={folder}/digits/classes.txt",
        f"--config.dataset.templates={folder}/digits/templates.txt",
        "--config.batch_size=1",
        "--config.probe_images=1",
    ]


def start(flags: list[str], *, cache: pathlib.Path) -> float:
    """Seconds to the first step of a run, which is then ended."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "must_jax.main", f"--workdir={folder}/run"),
            *(*flags, "--config.log_every_steps=1"),
        ]
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment | {"XDG_CACHE_HOME": str(cache)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        told = []
        try:
            for line in process.stdout:
                told.append(line)
                if FIRST_STEP in line:
                    return time.perf_counter() - started
        finally:
            process.kill()
            process.wait()
    raise RuntimeError(f"{' '.join(command)} came to no step: {''.join(told)}")


def main() -> None:
    """Prints both sides and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        runs = {"digits": prepare_digits(folder), "ViT-B/16": prepare_vit_b16(folder)}
        start(runs["digits"], cache=folder / "unmeasured")  # files come into the system's memory
        for name, flags in runs.items():
            seconds = {"cold": [], "warm": []}
            for i in range(args.rounds):
                for found in seconds.values():
                    found.append(start(flags, cache=folder / f"{name[:3]}{i}"))
            cold, warm = (statistics.median(found) for found in seconds.values())
            print(f"{name}, seconds from start to first step:")
            for side, found in seconds.items():
                told = f"({min(found):.1f} to {max(found):.1f})"
                print(f"  {side} {statistics.median(found):6.1f} {told}")
            print(f"  warm / cold {warm / cold:.2f}, at most {WANTED:.2f} wanted", flush=True)


if __name__ == "__main__":
    main()
