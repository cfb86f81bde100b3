"""Gives the project damaged and hostile files by the thousand, and counts what it does with them.

    python tools/fuzz_inputs.py [--cases N] [--seed 0] [--only images]

Checkpoints of every family through the program that converts them; converted checkpoints as the
trainer loads them; workdirs as a run goes on from them; images through decoding and both loaders;
configs, names, templates, descriptions and lists through the command line. Each case runs in a
process with limits on time and memory. A fault is all but a refusal of one line or a right result:
a crash, a hang, a traceback, a program run, a file written elsewhere or by half. Faults are listed,
and the exit code is 1 if there are any. Needs what the tests need.
"""

import argparse
import collections
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATHS = [str(ROOT), str(ROOT / "tools"), str(ROOT / "tests")]
sys.path[:0] = PATHS
os.environ["JAX_PLATFORMS"] = "cpu"

from fuzz import families  # noqa: E402


def main() -> int:
    """Runs the program; 1 if there were faults."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cases", type=int, help="of each kind of input; default: 2200, and 3300 images"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=families.FAMILIES, help="one kind of input")
    args = parser.parse_args()
    # The processes that are started import from there too.
    os.environ["PYTHONPATH"] = os.pathsep.join(PATHS)
    faults = 0
    print(
        "| input | files | came out | faults | slowest | most memory |\n|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        counted = []
        for name in [args.only] if args.only else families.FAMILIES:
            cases = args.cases or families.FAMILIES[name].cases_in_all
            outcomes = list(
                families.outcomes(name, range(cases), seed=args.seed, folder=Path(folder))
            )
            bad = [one for one in outcomes if one.kind not in families.FAMILIES[name].fine]
            counts = collections.Counter(one.kind for one in outcomes)
            told = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
            slowest = max(outcomes, key=lambda one: one.seconds)
            largest = max(outcomes, key=lambda one: one.memory)
            print(
                f"| {name} | {len(outcomes)} | {told} | {len(bad)} "
                f"| {slowest.seconds:.1f} s ({slowest.what}) "
                f"| {largest.memory / 2**20:.0f} MiB ({largest.what}) |",
                flush=True,
            )
            for one in bad:
                print(f"{name} {one.index}: {one.what}: {one.kind}: {one.message}", file=sys.stderr)
            faults += len(bad)
            of = collections.Counter(one.what.partition(":")[0] for one in outcomes)
            if len(of) <= 40:  # more are names of files, not kinds
                told = ", ".join(f"{count} {what}" for what, count in of.most_common())
                counted.append(f"{name}: {told}")
    print("", *counted, sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
