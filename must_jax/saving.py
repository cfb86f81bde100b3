"""A run's checkpoints where disks fill and file systems fail: told, tried again, never lost."""

import time
from collections.abc import Sequence
from typing import Any

from must_jax import distributed
from must_jax.checkpoint_writer import Checkpoints
from must_jax.errors import UserError
from must_jax.progress import say
from must_jax.run_notes import RunNotes
from must_jax.state import TrainState

RETRY_SECONDS = 60.0  # after which a run that goes on tries again
# Seconds between tries of a checkpoint that a run ends with: less than the default period of grace.
LAST_RETRIES = (1.0, 4.0, 10.0)


class Saving:
    """Writes checkpoints while the run goes on; all processes must call every method.

    Attributes:
      started_step: of the last checkpoint that was begun, and has not failed.
    """

    def __init__(self, checkpoints: Checkpoints, *, step: int, notes: RunNotes):
        """`step` is that of the checkpoint that the run goes on from, 0 without one.

        `notes` are that checkpoint's.
        """
        self._checkpoints = checkpoints
        self._retry_at: float | None = None
        self._written_step = step
        self._evaluated_step = notes.evaluated_step
        self.started_step = step

    def save(self, state: TrainState, *, step: int, notes: RunNotes, chosen: Sequence[int]) -> None:
        """Begins a checkpoint; of `chosen` steps, best first, one stays."""
        failure = self._checkpoints.save(state, step=step, notes=notes.json(), chosen=chosen)
        self._tell(failure)
        self._evaluated_step = notes.evaluated_step
        self.started_step = step

    def is_retry_due(self) -> bool:
        """Whether a checkpoint failed, and the time has come to try again."""
        if any(distributed.gather(self._checkpoints.has_failed())):
            self._tell(self._checkpoints.finish())
        due = self._retry_at is not None and time.monotonic() >= self._retry_at
        return distributed.from_first(due)

    def save_last(self, state: TrainState, **keywords: Any) -> None:
        """Writes a checkpoint that the run ends with, unless it is written already.

        One that lacks the evaluation of its step, for the run was stopped in it, is given that.

        Raises:
          UserError: it can't be written, after some tries.
        """
        step = keywords["step"]
        failure = None
        for seconds in (0.0, *LAST_RETRIES):
            if failure is not None:
                say(f"the checkpoint of step {step} was not written: {failure}; trying again")
            time.sleep(seconds)
            if self.started_step != step:
                self.save(state, **keywords)
            failure = self._checkpoints.finish()
            if failure is not None:
                self.started_step = self._written_step
                continue
            notes = keywords["notes"]
            if notes.evaluated_step != self._evaluated_step:
                failure = self._checkpoints.renew_notes(state, step=step, notes=notes.json())
            if failure is None:
                return
        raise UserError(
            f"the checkpoint of step {step} cannot be written ({failure}); mend that, and the same "
            f"command goes on from step {self._written_step}"
        )

    def _tell(self, failure: str | None) -> None:
        """Takes how the checkpoint that was begun last went."""
        self._retry_at = None
        if failure is None:
            self._written_step = self.started_step
            return
        self._retry_at = time.monotonic() + RETRY_SECONDS
        say(
            f"the checkpoint of step {self.started_step} was not written: {failure}; training goes "
            f"on, that of step {self._written_step} stays, and the next try is in "
            f"{RETRY_SECONDS:.0f} s"
        )
        self.started_step = self._written_step
