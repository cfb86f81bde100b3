"""What a person reads while a run goes on."""

import datetime
import time

import jax
import numpy as np

from must_jax.data.sources import ImageFolder
from must_jax.errors import UserError
from must_jax.metrics import MetricWriter


def say(text: str) -> None:
    """Prints a line, on the first process only."""
    if jax.process_index() == 0:
        print(text, flush=True)


def percent(fraction: float | None) -> str:
    """An accuracy in words; a dash where no labels tell it."""
    return "-" if fraction is None else f"{100 * fraction:.1f} %"


class Progress:
    """Averages the metrics between log lines, and writes and prints them.

    Metrics stay on the device until they are due.
    """

    def __init__(
        self,
        writer: MetricWriter,
        *,
        first_step: int,
        num_steps: int,
        steps_per_epoch: int,
        log_every_steps: int,
        batch_size: int,
    ):
        """`first_step` is the number of steps done already."""
        self._writer = writer
        self._first_step = first_step
        self._num_steps = num_steps
        self._steps_per_epoch = steps_per_epoch
        self._log_every_steps = log_every_steps
        self._batch_size = batch_size
        self._pending: list[dict[str, jax.Array]] = []
        self._training_seconds = 0.0
        self._resumed = self._logged = time.perf_counter()

    def step(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of a step, the `step`-th of the run, counted from 1."""
        self._pending.append(metrics)
        if step % self._log_every_steps and step != self._num_steps:
            return
        fetched = jax.device_get(self._pending)
        now = time.perf_counter()
        images_per_second = len(fetched) * self._batch_size / (now - self._logged)
        means = {name: float(np.mean([m[name] for m in fetched])) for name in fetched[0]}
        for name in ("learning_rate", "ema_decay"):
            means[name] = float(fetched[-1][name])
        means["images_per_second"] = images_per_second
        self._writer.write(step, {f"train/{name}": value for name, value in means.items()})
        remaining = (now - self._resumed) / (step - self._first_step) * (self._num_steps - step)
        say(
            f"epoch {-(-step // self._steps_per_epoch)}  step {step}/{self._num_steps}"
            f"  loss {means['loss']:.3f} (self-train {means['loss_self_train']:.3f}"
            f"  fair {means['loss_fair']:.3f}  mim {means['loss_mim']:.3f}"
            f"  align {means['loss_align']:.3f})"
            f"  confident {percent(means['confident_fraction'])}"
            f"  {images_per_second:.0f} images/s"
            f"  ETA {datetime.timedelta(seconds=round(remaining))}"
        )
        self._pending = []
        self._logged = now

    def evaluated(self, step: int, scores: dict[str, float | None]) -> None:
        """Takes the accuracies after a step, by the names of what was scored."""
        known = {name: score for name, score in scores.items() if score is not None}
        if known:
            self._writer.write(step, {f"eval/{name}_top1": score for name, score in known.items()})
            told = "  ".join(f"{name} {percent(score)}" for name, score in known.items())
            say(f"epoch {step // self._steps_per_epoch}  accuracy: {told}")
        # Scoring counts towards the ETA, not towards the training's images per second.
        self._logged = time.perf_counter() if not self._pending else self._logged


class FailedImages:
    """The records that did not decode: names each once, and ends the run when they are too many."""

    def __init__(self, source: ImageFolder, *, max_fraction: float):
        """`max_fraction` is the share of the images that may fail."""
        self._source = source
        self._limit = max_fraction * len(source)
        self._records: set[int] = set()

    def __len__(self) -> int:
        return len(self._records)

    def note(self, failed: np.ndarray) -> None:
        """Takes a batch's `failed` (b,).

        Raises:
          UserError: more images failed than may.
        """
        for record in sorted(set(failed[failed >= 0].tolist()) - self._records):
            self._records.add(record)
            print(f"skipped {self._source.path_of(record)}: it does not decode", flush=True)
        if len(self._records) > self._limit:
            raise UserError(
                f"{len(self._records)} of the {len(self._source)} images in {self._source.path} do "
                "not decode (named above), more than config.loader.max_failed_fraction allows; "
                "mend or remove them, or raise it"
            )
