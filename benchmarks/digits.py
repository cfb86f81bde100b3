"""Accuracy on the digits: five seeds, and what each loss is worth.

    python benchmarks/digits.py --workdir runs/digits_table

A seed draws the split, the order, the views and the fresh parameters. Prints one Markdown row a
run, all of the last epoch, and the mean over the seeds. Runs that are finished in WORKDIR are not
repeated, so take another one after a change. About half an hour on two CPU cores.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
VARIANTS = {
    "the method": [],
    "without self-training": ["--config.self_train_weight=0.0"],
    "without masked modeling": ["--config.mim_weight=0.0"],
    "without alignment": ["--config.align_weight=0.0"],
}


def prepare_clip(workdir: pathlib.Path) -> None:
    """Converts the digits' CLIP into `workdir`, if it isn't there."""
    if not (workdir / "clip").exists():
        command = [ROOT / "tools/convert_clip_weights.py", ROOT / "assets/digits_clip"]
        subprocess.run(
            [sys.executable, *map(str, command), workdir / "clip"], check=True, stdout=sys.stderr
        )


def run(name: str, *, seed: int, workdir: pathlib.Path, flags: list[str]) -> dict[str, Any]:
    """The result.json of one run, which is made if it isn't there."""
    data = workdir / f"data{seed}"
    if not data.exists():
        command = [ROOT / "tools/prepare_digits.py", data, "--seed", seed]
        subprocess.run([sys.executable, *map(str, command)], check=True, stdout=sys.stderr)
    folder = workdir / f"{name.replace(' ', '_').replace(',', '')}-{seed}"
    if not (folder / "result.json").exists():
        command = [
            f"--config={ROOT}/configs/digits.py",
            f"--workdir={folder}",
            f"--config.seed={seed}",
            f"--config.checkpoint={workdir}/clip",
            f"--config.dataset.train={data}/train",
            f"--config.dataset.test={data}/test",
            f"--config.dataset.class_names={data}/classes.txt",
            f"--config.dataset.templates={data}/templates.txt",
            *flags,
        ]
        subprocess.run(
            [sys.executable, "-m", "must_jax.main", *command],
            check=True,
            stdout=sys.stderr,
            cwd=ROOT,
        )
    return json.loads((folder / "result.json").read_text())


def row(name: str, results: list[dict[str, float]]) -> str:
    """Zero-shot, student and teacher accuracy and the teacher's gain, in percent, as a row."""
    means = [
        100 * statistics.mean(result[key] for result in results)
        for key in ("zeroshot_top1", "student_top1", "teacher_top1")
    ]
    cells = [f"{value:.1f}" for value in means] + [f"{means[2] - means[0]:+.1f}"]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    args, flags = parser.parse_known_args()
    workdir = args.workdir.absolute()
    prepare_clip(workdir)
    print("| run | zero-shot | student | teacher | gain |\n|---|---|---|---|---|")
    for variant in args.variants:
        results = []
        for seed in args.seeds:
            variant_flags = [*VARIANTS[variant], *flags]
            results.append(run(variant, seed=seed, workdir=workdir, flags=variant_flags))
            if variant == args.variants[0]:
                print(row(f"{variant}, seed {seed}", results[-1:]), flush=True)
        print(row(f"{variant}, mean of {len(results)} seeds", results), flush=True)


if __name__ == "__main__":
    main()
