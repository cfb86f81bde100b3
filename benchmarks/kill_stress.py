"""Kills training runs at random moments, and compares what they end with, bit for bit.

    python benchmarks/kill_stress.py --kills=100
    python benchmarks/kill_stress.py --kills=20 --processes=2

A little run (`tests/tiny_run.py`, through `must_jax.main` as a process) is killed with SIGKILL at
any moment, between steps, in the midst of saving and of evaluating, and started again by the same
command, up to ten times; every other run has a process of its own that makes its batches. Of
several processes of a run, a random one is killed, and the others must end within a minute, with
a word of why. At its end, parameters, result.json and metrics.jsonl are compared with those of a
run that nothing disturbed. Prints a line a run and the sums.
"""

import argparse
import collections
import os
import pathlib
import sys
import tempfile

sys.path.append(str(pathlib.Path(__file__).parents[1] / "tests"))

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import kills
import tiny_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, help="of a run")
    args = parser.parse_args()
    moments: collections.Counter[str] = collections.Counter()
    resumes = redone = differences = 0
    slowest_end = 0.0
    with tempfile.TemporaryDirectory() as folder:
        inputs = tiny_run.write_all(pathlib.Path(folder) / "inputs")
        stress = kills.stress(
            inputs, kills=args.kills, per_run=10, seed=args.seed, processes=args.processes
        )
        for number, run in enumerate(stress, start=1):
            moments.update(run.moments)
            resumes += run.resumes
            redone += run.redone
            differences += len(run.differences)
            slowest_end = max(slowest_end, run.slowest_end)
            print(
                f"run {number}: {len(run.moments)} kills ({', '.join(run.moments)}), "
                f"{run.resumes} resumes, {run.redone} steps done again, differences: "
                f"{', '.join(run.differences) or 'none'}",
                flush=True,
            )
    told = ", ".join(f"{count} at {moment}" for moment, count in sorted(moments.items()))
    print(
        f"{sum(moments.values())} kills ({told}), {resumes} resumes, {redone} steps done again, "
        f"{differences} differences"
        + (f", the others ended within {slowest_end:.0f} s" if args.processes > 1 else "")
    )
    sys.exit(bool(differences))


if __name__ == "__main__":
    main()
