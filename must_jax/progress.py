"""What a person reads while a run goes on."""

import contextlib
import datetime
import time
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from must_jax.errors import one_line
from must_jax.metrics import MetricWriter
from must_jax.quality import Quality
from must_jax.scores import IN_WORDS, Scores, fields
from must_jax.telemetry import Telemetry

Metrics = Mapping[str, jax.Array | float]

# Steps that may be dispatched before their predecessors are done: enough to keep the device busy,
# and each holds a batch in its memory.
STEPS_AHEAD = 2


def say(text: str) -> None:
    """Prints a line, on the first process only."""
    if jax.process_index() == 0:
        print(one_line(text), flush=True)


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
        pending: list[dict[str, float]],
    ):
        """`first_step` is the number of steps done already, `eval_metric` the accuracy to tell.

        `pending` are the metrics of those steps that no line has told yet.
        """
        self._writer = writer
        self._telemetry = telemetry
        self._first_step = first_step
        self._num_steps = num_steps
        self._steps_per_epoch = steps_per_epoch
        self._log_every_steps = log_every_steps
        self._eval_metric = eval_metric
        self._pending: list[Metrics] = list(pending)
        self._resumed = time.perf_counter()

    def step(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of a step, the `step`-th of the run, counted from 1."""
        self._pending.append(metrics)
        self._telemetry.dispatched(metrics)
        jax.block_until_ready(self._pending[-1 - STEPS_AHEAD : -STEPS_AHEAD])
        if step % self._log_every_steps and step != self._num_steps:
            return
        fetched = self.pending()
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

    def pending(self) -> list[dict[str, float]]:
        """The metrics of the steps since the last line; waits for the device."""
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
