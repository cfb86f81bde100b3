"""Steps that are not finite: counted and named, and after too many in a row the run stops."""

import collections
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from must_jax import distributed
from must_jax.data.sources import Source
from must_jax.errors import UserError
from must_jax.metrics import write_json
from must_jax.progress import STEPS_AHEAD, say
from must_jax.state import TrainState

DUMP = "nonfinite"  # folder below the workdir
NAMED_RECORDS = 8  # of a batch, in the log; the dump has all


@dataclasses.dataclass(frozen=True)
class _Started:
    """A step that the device may still be at, as `note` takes it."""

    step: int
    metrics: Mapping[str, Any]
    batch: Mapping[str, jax.Array]
    records: np.ndarray


class NonFiniteSteps:
    """Watches the steps of a run.

    It looks at a step when it is done, a few steps later, so that the device never waits; from the
    first one that is not finite on, at every step at once, until one is.

    Attributes:
      count: of the whole run.
      in_a_row: up to the last step that was looked at.
    """

    def __init__(
        self,
        source: Source,
        *,
        workdir: str,
        steps_per_epoch: int,
        limit: int,
        count: int,
        in_a_row: int,
    ):
        """`limit` steps in a row end the run; `count` and `in_a_row` are as a run left them."""
        self._source = source
        self._steps_per_epoch = steps_per_epoch
        self._workdir = workdir
        self._limit = limit
        self._unseen: collections.deque[_Started] = collections.deque()
        self.count = count
        self.in_a_row = in_a_row

    def note(
        self,
        step: int,
        metrics: Mapping[str, Any],
        *,
        batch: Mapping[str, jax.Array],
        records: np.ndarray,
        state: TrainState,
    ) -> None:
        """Takes a step that was started. All processes must call it.

        Args:
          step: counted from 1.
          metrics: of the step, on the device.
          batch: that it was of, on the mesh.
          records: (b,), what this process's rows are of.
          state: after it.

        Raises:
          UserError: too many in a row were not finite; the last one can be replayed.
        """
        self._unseen.append(_Started(step, metrics, batch, records))
        while self._unseen and (self.in_a_row or len(self._unseen) > STEPS_AHEAD):
            self._look(self._unseen.popleft(), state)

    def finish(self, state: TrainState) -> None:
        """Looks at all that was started."""
        while self._unseen:
            self._look(self._unseen.popleft(), state)

    def _look(self, started: _Started, state: TrainState) -> None:
        if started.metrics["is_finite"]:
            self.in_a_row = 0
            return
        self.count += 1
        self.in_a_row += 1
        everywhere = [r for theirs in distributed.gather(started.records.tolist()) for r in theirs]
        fetched = jax.device_get(dict(started.metrics))
        values = {name: float(value) for name, value in fetched.items()}
        bad = [name for name, value in values.items() if not np.isfinite(value)]
        names = [self._source.name_of(record) for record in everywhere]
        say(
            f"step {started.step} skipped: {', '.join(bad)} not finite; its images are "
            f"{name_some(names)}"
        )
        if self.in_a_row < self._limit:
            return
        folder = pathlib.Path(self._workdir).absolute() / DUMP
        told = {
            "step": started.step,
            "steps_per_epoch": self._steps_per_epoch,
            "metrics": {name: repr(value) for name, value in values.items()},
            "images": names,
        }
        _dump(folder, state=state, batch=started.batch, told=told)
        raise UserError(
            f"{self.in_a_row} steps in a row were not finite, up to step {started.step} "
            f"({', '.join(bad)}): lower config.learning_rate, or look for what is wrong with "
            f"--mode=replay --disable_jit, which repeats that step from {folder}"
        )


def name_some(names: Sequence[str]) -> str:
    """The first images of a batch in words, and how many more there are."""
    more = len(names) - NAMED_RECORDS
    return ", ".join(names[:NAMED_RECORDS]) + (f" and {more} more" if more > 0 else "")


def _dump(
    folder: pathlib.Path, *, state: TrainState, batch: Mapping[str, jax.Array], told: dict[str, Any]
) -> None:
    """Leaves the state before a step, its batch, and what came out of it."""
    if jax.process_index() == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    arrays = {name: distributed.whole(array) for name, array in batch.items()}
    # Skipped steps changed nothing but the count.
    step = jax.device_put(np.int32(told["step"] - 1), state.step.sharding)
    ocp.save(folder / "state", dataclasses.replace(state, step=step))
    if jax.process_index() == 0:
        np.savez(folder / "batch.npz", **arrays)  # type: ignore[arg-type]
    write_json(folder / "step.json", told)


def read_dump(workdir: str) -> tuple[pathlib.Path, dict[str, np.ndarray], dict[str, Any]]:
    """Where the state of the step that a run ended at lies, its batch, and what came out of it.

    Raises:
      UserError: there is none, or it can't be read.
    """
    folder = pathlib.Path(workdir).absolute() / DUMP
    if not folder.exists():
        raise UserError(
            f"{folder} does not exist; a run leaves it when it ends at steps that are not finite"
        )
    try:
        told = json.loads((folder / "step.json").read_text())
        with np.load(folder / "batch.npz", allow_pickle=False) as arrays:
            batch = dict(arrays)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} cannot be read ({error})") from error
    return folder / "state", batch, told
