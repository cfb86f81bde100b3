"""Writes the checkpoints of a run, beside its steps."""

import os
import pathlib
import threading
from collections.abc import Sequence
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from must_jax import distributed
from must_jax.checkpoint import (
    COMPLETE,
    Notes,
    checkpoint_folder,
    shapes_of,
    silence_what_comes_late,
    system_error,
    told_beside,
    with_checksums,
)
from must_jax.errors import UserError, one_line
from must_jax.state import TrainState

# Where a write fails, some of orbax's threads wait for minutes for what will not come, and the end
# of the process for them.
has_abandoned_threads = threading.Event()


class _Kept:
    """The last `to_keep` checkpoints stay, and one that a run chose."""

    def __init__(self, to_keep: int):
        self._to_keep = to_keep
        self.chosen: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        last = {info.step for info in checkpoints[-self._to_keep :]}
        return [info.step in last | {self.chosen} for info in checkpoints]


class Checkpoints:
    """Writes the checkpoints of a run, in the background.

    A checkpoint that can't be written leaves those before it as they are.
    """

    def __init__(self, workdir: str, *, to_keep: int, step: int):
        """Opens the folder of a run that goes on from `step`, setting later checkpoints aside.

        `to_keep` is how many of the latest stay.

        Raises:
          UserError: it can't be written.
        """
        self._folder = checkpoint_folder(workdir)
        if jax.process_index() == 0:
            _prepare(self._folder, step=step)
        distributed.gather(None)  # the others wait for the first
        if not self._folder.is_dir():
            raise UserError(
                f"{self._folder} is not seen by process {jax.process_index()}; --workdir must lie "
                "on a file system that all processes share"
            )
        silence_what_comes_late()
        self._kept = _Kept(to_keep)
        self._checkpointer: Any = None
        self._pending: Any = None
        self._open()

    def _open(self) -> None:
        self._checkpointer = ocp.training.Checkpointer(
            self._folder,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=self._kept,
            cleanup_tmp_directories=True,
        )

    def save(
        self, state: TrainState, *, step: int, notes: Notes, chosen: int | None = None
    ) -> str | None:
        """Starts to write a checkpoint; the state may be donated as soon as this returns.

        All processes must call it.

        Args:
          state: of the run.
          step: that it is of.
          notes: JSON values of the host's, the same on all processes.
          chosen: step of a checkpoint that stays although it is not among the last.

        Returns:
          Why the checkpoint before could not be written, or None.
        """
        failure = self.finish()
        self._kept.chosen = chosen
        try:
            self._pending = self._checkpointer.save_async(
                step,
                with_checksums(state),
                custom_metadata=told_beside(notes, shapes_of(state)),
            )
        except Exception as error:
            self._pending = error
        return failure

    def finish(self) -> str | None:
        """Waits until everything is written; returns why not, or None. All must call it."""
        pending, self._pending = self._pending, None
        reason = None
        if isinstance(pending, Exception):
            reason = _reason(pending)
        elif pending is not None:
            try:
                pending.result()
            except Exception as error:
                reason = _reason(error)
        reasons = [told for told in distributed.gather(reason) if told is not None]
        if not reasons:
            return None
        self._reopen()
        return reasons[0]

    def has_failed(self) -> bool:
        """Whether a checkpoint is known to have failed; asks nobody and waits for nothing."""
        pending = self._pending
        if isinstance(pending, Exception):
            return True
        if pending is None:
            return False
        try:
            pending.result(timeout=0)
        except TimeoutError:
            return False
        except Exception:
            return True
        return False

    def _reopen(self) -> None:
        """A writer that failed remembers a checkpoint that is not there."""
        has_abandoned_threads.set()
        for act in (self._checkpointer.close, self._open):
            try:
                act()
            except Exception:  # told already, or about to be when the next one is written
                continue

    def close(self) -> None:
        """Waits until everything is written."""
        self.finish()
        self._checkpointer.close()


def _reason(error: Exception) -> str:
    """One line of why files can't be written, by the words of the system where it has some."""
    number = system_error(error)
    told = os.strerror(number) if number else str(error).strip().partition("\n")[0]
    return one_line(told or type(error).__name__)


def _prepare(folder: pathlib.Path, *, step: int) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if not path.name.isdecimal():
                continue
            # To orbax either would be the latest checkpoint, and hide the one to go on from.
            if not (path / COMPLETE).exists():
                _set_aside(path, "incomplete")
            elif int(path.name) > step:
                _set_aside(path, "damaged")
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror})") from error


def _set_aside(path: pathlib.Path, why: str) -> None:
    target = path.with_name(f"{why}-{path.name}")
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"{why}-{path.name}-{number}")
    path.rename(target)
