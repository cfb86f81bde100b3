"""What is chosen and rung without labels on the digits, beside what labels would have told.

    python benchmarks/label_free.py --workdir runs/label_free

Five seeds of the recipe, and of settings that are broken on purpose. Prints Markdown, a row a run:
accuracy on the test images of zero-shot CLIP, and of the teacher at the last epoch, at the one that
was chosen without labels, and at the one that is best by labels; and the alarms at the end. A run
is called broken where it ends below zero-shot CLIP, which no setting's name decides. Runs that are
finished in WORKDIR are not repeated, so take another one after a change; ten of them are runs of
benchmarks/digits.py too. About forty minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import pathlib
import statistics
from typing import Any

from digits import prepare_clip, run

SETTINGS = {
    "the method": [],
    "without fairness": ["--config.fair_weight=0.0"],
    "without self-training": ["--config.self_train_weight=0.0"],
    "300 x the learning rate": ["--config.learning_rate=0.3"],
    "without fairness or threshold, 30 x the learning rate": [
        "--config.fair_weight=0.0",
        "--config.confidence_threshold=0.0",
        "--config.learning_rate=0.03",
    ],
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """A run, told with labels and without; accuracies are the teacher's, as fractions.

    Attributes:
      zeroshot: zero-shot CLIP's accuracy.
      last, chosen, best: at the last epoch, and at those chosen without and with labels.
      chosen_epoch, best_epoch: which these are.
      alarms: names of those that ring at the end.
    """

    zeroshot: float
    last: float
    chosen: float
    best: float
    chosen_epoch: int
    best_epoch: int
    alarms: tuple[str, ...]

    @classmethod
    def of(cls, result: dict[str, Any]) -> Outcome:
        """From a result.json."""
        chosen, best = result["chosen_without_labels"], result["best_by_labels"]
        return cls(
            zeroshot=result["zeroshot_top1"],
            last=result["teacher_top1"],
            chosen=chosen["teacher_top1"],
            best=best["teacher_top1"],
            chosen_epoch=chosen["epoch"],
            best_epoch=best["epoch"],
            alarms=tuple(result["alarms"]),
        )

    @property
    def is_broken(self) -> bool:
        """Whether the run lost accuracy."""
        return self.last < self.zeroshot


def row(name: str, outcome: Outcome) -> str:
    """A row of the table."""
    cells = [
        name,
        f"{100 * outcome.zeroshot:.1f}",
        f"{100 * outcome.last:.1f}",
        f"{100 * outcome.chosen:.1f} ({outcome.chosen_epoch})",
        f"{100 * outcome.best:.1f} ({outcome.best_epoch})",
        ", ".join(outcome.alarms) or "none",
    ]
    return f"| {' | '.join(cells)} |"


def mean_row(name: str, outcomes: list[Outcome]) -> str:
    """A row of the means over the seeds, and how many runs each alarm rings in."""
    means = (
        100 * statistics.mean(getattr(each, what) for each in outcomes)
        for what in ("zeroshot", "last", "chosen", "best")
    )
    rung = collections.Counter(alarm for each in outcomes for alarm in each.alarms)
    told = ", ".join(f"{alarm} in {count}" for alarm, count in rung.items())
    cells = [f"{name}, mean of {len(outcomes)} seeds", *(f"{mean:.1f}" for mean in means)]
    return f"| {' | '.join(cells)} | {told or 'none'} |"


def summary(outcomes: list[Outcome]) -> list[str]:
    """What the runs come to: how far choices are from the best, and which alarms were right."""
    told = []
    for name, runs in (
        ("that gained", [each for each in outcomes if not each.is_broken]),
        ("that lost", [each for each in outcomes if each.is_broken]),
    ):
        if not runs:
            continue
        short = {
            what: 100 * statistics.mean(each.best - getattr(each, what) for each in runs)
            for what in ("chosen", "last")
        }
        told.append(
            f"{len(runs)} runs {name}: behind the best by labels, in points, the choice without "
            f"labels is {short['chosen']:.2f} on average, the last epoch {short['last']:.2f}; an "
            f"alarm rings in {sum(bool(each.alarms) for each in runs)}"
        )
    return told


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    args, flags = parser.parse_known_args()
    workdir = args.workdir.absolute()
    prepare_clip(workdir)
    print("| run | zero-shot | last | chosen (epoch) | best by labels (epoch) | alarms |")
    print("|---|---|---|---|---|---|")
    outcomes = []
    for setting in args.settings:
        for seed in args.seeds:
            result = run(setting, seed=seed, workdir=workdir, flags=[*SETTINGS[setting], *flags])
            outcomes.append(Outcome.of(result))
            print(row(f"{setting}, seed {seed}", outcomes[-1]), flush=True)
        print(mean_row(setting, outcomes[-len(args.seeds) :]), flush=True)
    print()
    for line in summary(outcomes):
        print(line)


if __name__ == "__main__":
    main()
