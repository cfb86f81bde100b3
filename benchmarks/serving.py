"""What smaller weights cost a run's artifact: size, accuracy and probabilities on its test images.

    python benchmarks/serving.py --workdir runs/digits

Exports every variant of the teacher, loads it as a service would, and classifies the views of the
trainer's evaluation.
"""

import argparse
import pathlib
import tempfile
import time

import numpy as np

from must_jax.config import read_config
from must_jax.experiment import build
from must_jax.exporting.loader import Classifier
from must_jax.exporting.runner import export_run
from must_jax.resume import CONFIG_FILE

# The first is what the others are compared with.
VARIANTS = (
    ("float32", "float32"),
    ("bfloat16", "float32"),
    ("bfloat16", "bfloat16"),
    ("int8", "float32"),
    ("int8", "bfloat16"),
)
BATCH_SIZE = 64


def views_and_labels(config) -> tuple[np.ndarray, np.ndarray]:
    """The test images as the trainer evaluates them, (N, R, R, 3) uint8, and their classes (N,)."""
    experiment = build(config)
    source = experiment.test_source()
    if source is None:
        raise SystemExit("the run's config.dataset.test is empty; accuracy needs labelled images")
    views, labels = [], []
    with experiment.eval_batches(source, mesh=experiment.make_mesh()) as batches:
        for batch in batches:
            views.append(batch["image"][batch["valid"]])
            labels.append(batch["label"][batch["valid"]])
    return np.concatenate(views), np.concatenate(labels)


def measure(folder: pathlib.Path, views: np.ndarray) -> dict:
    """Size in MiB, seconds to load and to compile, and probabilities (N, K) of an artifact."""
    start = time.perf_counter()
    classifier = Classifier(folder)
    loaded = time.perf_counter()
    padded = np.concatenate([views, views[: -len(views) % BATCH_SIZE]])
    batches = padded.reshape(-1, BATCH_SIZE, *views.shape[1:])
    classifier.run(batches[0])
    compiled = time.perf_counter()
    rows = [classifier.run(batch)["probabilities"] for batch in batches]
    return {
        "mebibytes": sum(file.stat().st_size for file in folder.iterdir()) / 2**20,
        "load": loaded - start,
        "compile": compiled - loaded,
        "probabilities": np.concatenate(rows)[: len(views)],
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, help="of a finished run")
    args = parser.parse_args()
    config = read_config(pathlib.Path(args.workdir) / CONFIG_FILE)
    views, labels = views_and_labels(config)
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for weights, dtype in VARIANTS:
            target = pathlib.Path(scratch) / f"{weights}_{dtype}"
            export_run(config, args.workdir, target, format="serving", weights=weights, dtype=dtype)
            results.append(measure(target, views))
    plain = results[0]["probabilities"]
    print(f"\n{len(views)} images of {config.dataset.test}\n")
    print("| weights | computed in | MiB | accuracy | other class | max abs dp | load | compile |")
    print("|---|---|---|---|---|---|---|---|")
    for (weights, dtype), result in zip(VARIANTS, results, strict=True):
        found = result["probabilities"]
        right = np.mean(found.argmax(1) == labels)
        other = np.sum(found.argmax(1) != plain.argmax(1))
        print(
            f"| {weights} | {dtype} | {result['mebibytes']:.2f} | {100 * right:.2f} % | {other} | "
            f"{np.abs(found - plain).max():.4f} | {result['load']:.2f} s | "
            f"{result['compile']:.1f} s |"
        )


if __name__ == "__main__":
    main()
