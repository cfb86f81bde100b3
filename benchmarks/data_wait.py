"""Share of the time that the training step waits for data.

    python benchmarks/data_wait.py

First a run on the digits, as metrics.jsonl tells it. Then the input pipeline at ViT-B/16's size
(two views of 224 and RandAugment, of 500x375 JPEGs) with a step that costs nothing, so that no host
keeps up, and with one that the host can keep up with: it takes half as many images a second as the
pipeline was seen to deliver. Those steps only take time, and no CPU.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import host_pipeline
import start

from must_jax.data import pipeline
from must_jax.data.randaugment import RandAugment
from must_jax.data.sources import Classes, open_source
from must_jax.progress import STEPS_AHEAD
from must_jax.telemetry import Performance, Telemetry

WANTED = 0.02
EPOCHS = 12
BATCH, STEPS, PHOTOS, THREADS = 32, 60, 512, 16


def run_digits(folder: pathlib.Path) -> float:
    """The share in a run of some epochs."""
    command = [
        *(sys.executable, "-m", "must_jax.main", f"--workdir={folder}/run"),
        *(*start.prepare_digits(folder), f"--config.epochs={EPOCHS}"),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=start.ROOT)
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    waited, seconds, before = 0.0, 0.0, 0
    for line in lines:
        if "perf/step_seconds" in line:
            took = (line["step"] - before) * line["perf/step_seconds"]
            waited += took * line["perf/data_wait_fraction"]
            seconds += took
            before = line["step"]
    return waited / seconds


class Device:
    """Does one step after the other, each of which takes only time."""

    def __init__(self, seconds: float) -> None:
        """Each takes `seconds`."""
        self.seconds = seconds
        self.done = 0.0

    def step(self) -> "Results":
        """Starts the next step and returns at once what can be waited for."""
        self.done = max(self.done, time.perf_counter()) + self.seconds
        return Results(self.done)


@dataclasses.dataclass(frozen=True)
class Results:
    """What a step of `Device` returns: there at a time of the clock."""

    done: float

    def block_until_ready(self) -> "Results":
        """Waits."""
        time.sleep(max(0.0, self.done - time.perf_counter()))
        return self


def run_views(folder: pathlib.Path, step: Callable[[], Results]) -> Performance:
    """Batches of views to a step, by the loop's rule; what the log line would tell."""
    source = open_source(str(folder), classes=Classes(("a",)), labels="auto")
    telemetry = Telemetry(batch_size=BATCH, flops_per_image=0.0, num_threads=THREADS, num_workers=0)
    with pipeline.train_loader(
        source,
        batch_size=BATCH,
        image_size=224,
        patch_size=16,
        mask_patch_size=32,
        mask_ratio=0.3,
        crop_area=(0.3, 1.0),
        flip_probability=0.5,
        rand_augment=RandAugment(),
        fill_color=host_pipeline.FILL,
        seed=0,
        num_epochs=STEPS * BATCH // PHOTOS + 1,
        num_threads=THREADS,
    ) as batches:
        pending = []
        for _ in itertools.islice(telemetry.timed(batches), STEPS):
            pending.append(step())
            telemetry.dispatched(pending[-1])
            if len(pending) > STEPS_AHEAD:
                pending[-1 - STEPS_AHEAD].block_until_ready()
        pending[-1].block_until_ready()
        return telemetry.lap()


def main() -> None:
    """Prints the shares."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.parse_args()
    wanted = f"under {100 * WANTED:.0f} % wanted"
    with tempfile.TemporaryDirectory() as name:
        waiting = run_digits(pathlib.Path(name))
        print(f"digits: the step waits for data {100 * waiting:.2f} % of the time, {wanted}")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        host_pipeline.write_photos(folder, size=(500, 375), count=PHOTOS)
        instant = run_views(folder, Device(0.0).step)
        waiting = instant.fields["perf/data_wait_fraction"]
        print(f"views of 224, a step that costs nothing: {100 * waiting:.2f} %, and is told:")
        print(f"  {instant.warning}")
        seconds = 2 * instant.fields["perf/step_seconds"]
        possible = run_views(folder, Device(seconds).step)
        waiting = possible.fields["perf/data_wait_fraction"]
        print(
            f"views of 224, a step of {1e3 * seconds:.0f} ms, {BATCH / seconds:.0f} images/s: "
            f"{100 * waiting:.2f} %, {wanted}"
        )


if __name__ == "__main__":
    main()
