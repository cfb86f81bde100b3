"""Whether `--mode=predict` needs more memory for more images: it must not.

    python benchmarks/predict_memory.py --workdir runs/digits [--images 100000 300000]

Predicts ArrayRecord shards of tiny generated images with a finished run, each number of images in a
process of its own, and prints the most memory that it held.
"""

import argparse
import io
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

DIFFERENT = 1000  # images, over and over again
SHARD = 50_000  # records


def write_shards(folder: pathlib.Path, *, num_images: int) -> None:
    rng = np.random.default_rng(0)
    files = []
    for pixels in rng.integers(0, 256, (DIFFERENT, 16, 16), np.uint8):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        files.append(file.getvalue())
    folder.mkdir()
    for start in range(0, num_images, SHARD):
        writer = ArrayRecordWriter(str(folder / f"{start:09d}.array_record"), "group_size:1")
        for record in range(start, min(start + SHARD, num_images)):
            writer.write(files[record % DIFFERENT])
        writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--images", type=int, nargs="+", default=[100_000, 300_000])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for num_images in args.images:
            for ending in ("csv", "parquet"):
                folder = pathlib.Path(temporary) / f"{num_images}_{ending}"
                write_shards(folder, num_images=num_images)
                command = [sys.executable, "-m", "must_jax.main", "--mode=predict"]
                command += [f"--workdir={args.workdir}", f"--images={folder}/*.array_record"]
                started = time.perf_counter()
                process = subprocess.Popen(
                    [*command, f"--output={folder}/out.{ending}"], stdout=subprocess.DEVNULL
                )
                _, status, usage = os.wait4(process.pid, 0)
                if status:
                    sys.exit(f"predict failed with status {os.waitstatus_to_exitcode(status)}")
                print(
                    f"{num_images} images, {ending}: {usage.ru_maxrss / 2**10:.0f} MiB at most, "
                    f"{time.perf_counter() - started:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
