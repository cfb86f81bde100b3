"""What a person reads while a run goes on."""

import contextlib
import datetime
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from must_jax import distributed
from must_jax.errors import print_line
from must_jax.metrics import MetricWriter
from must_jax.quality import Quality
from must_jax.run_notes import LINE
from must_jax.scores import IN_WORDS, Scores, fields
from must_jax.telemetry import Telemetry

Metrics = Mapping[str, jax.Array | float]

# Steps that may be dispatched before their predecessors are done: enough to keep the device busy,
# and each holds a batch in its memory.
STEPS_AHEAD = 2


def say(text: str) -> None:
    """Prints a line, on the first process only."""
    if jax.process_index() == 0:
        print_line(text)


def percent(fraction: float | None) -> str:
    """An accuracy in words; a dash where no labels tell it."""
    return "-" if fraction is None else f"{100 * fraction:.1f} %"


class Progress:
    """Averages the metrics between log lines, and writes and prints them.

    Metrics stay on the device until they are due. Steps that were skipped, for they were not
    finite, are counted and left out of the means.
    """

    def __init__(
        self,
        writer: MetricWriter,
        telemetry: Telemetry,
        *,
        first_step: int,
        num_steps: int,
        steps_per_epoch: int,
        log_every_steps: int,
        eval_metric: str,
        pending: list[dict[str, Any]],
    ):
        """`first_step` is the number of steps done already, `eval_metric` the accuracy to tell.

        `pending` is what the method of that name returned for the checkpoint that the run goes on
        from.

        Raises:
          UserError: lines are to be written again, and the file of them can't be read.
        """
        self._writer = writer
        self._telemetry = telemetry
        self._first_step = first_step
        self._num_steps = num_steps
        self._steps_per_epoch = steps_per_epoch
        self._log_every_steps = log_every_steps
        self._eval_metric = eval_metric
        writer.take_back([one[LINE] for one in pending if LINE in one])
        self._pending: list[Metrics] = [one for one in pending if LINE not in one]
        self._resumed = time.perf_counter()

    def step(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of a step, the `step`-th of the run, counted from 1."""
        self._pending.append(metrics)
        self._telemetry.dispatched(metrics)
        jax.block_until_ready(self._pending[-1 - STEPS_AHEAD : -STEPS_AHEAD])
        if step % self._log_every_steps and step != self._num_steps:
            return
        fetched = self._fetch()
        # A checkpoint of another version may hold other ones.
        fetched = [m for m in fetched if m.keys() == fetched[-1].keys()]
        performance = self._telemetry.lap()
        finite = [m for m in fetched if m["is_finite"]]
        names = [name for name in fetched[0] if name != "is_finite"]
        means = {name: float(np.mean([m[name] for m in finite])) for name in names if finite}
        for name in ("learning_rate", "ema_decay"):
            means[name] = fetched[-1][name]
        if len(finite) < len(fetched):
            means["skipped_steps"] = len(fetched) - len(finite)
        scalars = {f"train/{name}": value for name, value in means.items()}
        self._writer.write(step, scalars | (performance.fields if performance else {}))
        seconds_a_step = (time.perf_counter() - self._resumed) / (step - self._first_step)
        remaining = seconds_a_step * (self._num_steps - step)
        told = "".join(f"  {words}" for words in performance.told) if performance else ""
        losses = "without a finite step"
        if finite:
            losses = (
                f"loss {means['loss']:.3f} (self-train {means['loss_self_train']:.3f}"
                f"  fair {means['loss_fair']:.3f}  mim {means['loss_mim']:.3f}"
                f"  align {means['loss_align']:.3f})"
                f"  confident {percent(means['confident_fraction'])}"
            )
        say(
            f"epoch {-(-step // self._steps_per_epoch)}  step {step}/{self._num_steps}"
            f"  {losses}{told}  ETA {datetime.timedelta(seconds=round(remaining))}"
        )
        if performance and performance.warning:
            say(performance.warning)
        self._pending = []

    def pending(self) -> list[dict[str, Any]]:
        """Brings the log lines to the disk, and returns what a checkpoint is to hold of the others.

        To be called before a checkpoint begins, by all processes: a run that goes on from it makes
        no line of an earlier step again, so none may be in memory alone, where a kill or a power
        cut would take it. Waits for the device and the disk.

        Returns:
          `RunNotes.pending`: lines that the disk did not take, and the metrics of the steps since
          the last line.
        """
        refused = distributed.from_first(self._writer.sync())
        return [*({LINE: line} for line in refused), *self._fetch()]

    def _fetch(self) -> list[dict[str, float]]:
        """The metrics of the steps since the last line."""
        fetched = jax.device_get(self._pending)
        return [{name: float(value) for name, value in m.items()} for m in fetched]

    def evaluated(self, step: int, scores: Scores, quality: Quality) -> None:
        """Takes the accuracies after a step, by the names of what was scored, and its quality."""
        values = fields(scores)
        known = {f"eval/{name}": value for name, value in values.items() if value is not None}
        self._writer.write(step, known | quality.metrics())
        accuracy = ""
        if known:
            metric = self._eval_metric
            told = "  ".join(f"{name} {percent(values[f'{name}_{metric}'])}" for name in scores)
            accuracy = f"  {IN_WORDS[metric]}: {told}"
        say(
            f"epoch {step // self._steps_per_epoch}{accuracy}  without labels: consensus "
            f"{quality.consensus:.3f}  agrees with zero-shot {percent(quality.teacher_zeroshot)}"
        )

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps what is done inside out of the times that are logged."""
        jax.block_until_ready(self._pending)
        with self._telemetry.paused():
            yield
