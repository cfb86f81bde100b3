"""Writes the checkpoints of a run, beside its steps."""

import contextlib
import functools
import json
import os
import pathlib
import threading
from collections.abc import Callable, Sequence
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
from must_jax.errors import UserError, one_line, print_line
from must_jax.local_files import open_to_write, replace_file, to_disk
from must_jax.state import TrainState

PROBE_BYTES = 4096  # that each process writes before a checkpoint begins
# After which a checkpoint that not all processes have written counts as failed: those that are done
# wait for the others, and no process tells another why it isn't.
SAVE_SECONDS = 600
# Where a write fails, some of orbax's threads wait for minutes for what will not come, and the end
# of the process for them.
has_abandoned_threads = threading.Event()


class _Kept:
    """The last `to_keep` checkpoints stay, and the first of the chosen steps that has one."""

    def __init__(self, to_keep: int):
        self._to_keep = to_keep
        self.chosen: Sequence[int] = ()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [info.step for info in checkpoints]
        kept = {*steps[-self._to_keep :], next((s for s in self.chosen if s in steps), None)}
        return [step in kept for step in steps]


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
        try:
            self._open()
        except Exception as error:
            if distributed.is_of_runtime(error):
                raise
            # Orbax reads what is told beside every checkpoint, and raises many types for nonsense.
            raise UserError(
                f"{self._folder} can't be opened ({_reason(error)}); where it holds a checkpoint "
                "that this run did not write, move that away"
            ) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not KeyboardInterrupt:  # which ends the process at once
            self.close()

    def _open(self) -> None:
        context = ocp.Context()
        context.asynchronous.timeout_secs = SAVE_SECONDS
        self._checkpointer = ocp.training.Checkpointer(
            self._folder,
            context=context,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=self._kept,
            cleanup_tmp_directories=True,
        )
        manager = self._checkpointer._manager
        # Orbax would ask JAX's service for the step at which to stop by the run's steps, and
        # `Preemption` asks by its calls: a signal in between would be for one that never comes.
        manager.reached_preemption = lambda step: False
        remover = manager._checkpoint_deleter
        remover.delete = functools.partial(_remove, remover.delete)

    def _require_writable(self) -> None:
        """Of several processes, none may begin what another can't: they would wait for it.

        Raises:
          OSError: the folder can't be written, on all processes.
        """
        probe = self._folder / f"probe-{jax.process_index()}"
        failed = None
        try:
            probe.unlink(missing_ok=True)  # a kill left it, or a stranger a link
            with open_to_write(probe, "wb") as file:
                file.write(bytes(PROBE_BYTES))
                file.flush()
                to_disk(file.fileno())
        except OSError as error:
            failed = [error.errno, error.strerror]
        with contextlib.suppress(OSError):
            probe.unlink()
        for told in distributed.gather(failed):
            if told is not None:
                raise OSError(*told)

    def save(
        self, state: TrainState, *, step: int, notes: Notes, chosen: Sequence[int] = ()
    ) -> str | None:
        """Starts to write a checkpoint; the state may be donated as soon as this returns.

        All processes must call it.

        Args:
          state: of the run.
          step: that it is of.
          notes: JSON values of the host's, the same on all processes.
          chosen: steps, of which the first that has a checkpoint stays although it is not among
            the last.

        Returns:
          Why the checkpoint before could not be written, or None.
        """
        failure = self.finish()
        self._kept.chosen = chosen
        try:
            self._require_writable()
            if self._checkpointer is None:
                self._open()
            self._pending = self._checkpointer.save_async(
                step,
                with_checksums(state),
                custom_metadata=told_beside(notes, shapes_of(state)),
            )
        except Exception as error:
            self._pending = error
        return failure

    def renew_notes(self, state: TrainState, *, step: int, notes: Notes) -> str | None:
        """Gives the complete checkpoint of a step other notes, or leaves it as it is.

        All processes must call it.

        Returns:
          Why it was left, or None.
        """
        path, reason = self._folder / str(step) / COMPLETE, None
        if jax.process_index() == 0:
            try:
                told = json.loads(path.read_bytes())
                told["custom_metadata"] = told_beside(notes, shapes_of(state))
                replace_file(path, json.dumps(told).encode())
            except (OSError, ValueError) as error:
                reason = _reason(error)
        return distributed.from_first(reason)

    def finish(self) -> str | None:
        """Waits until everything is written; returns why not, or None. All must call it."""
        pending, self._pending = self._pending, None
        failure = pending if isinstance(pending, Exception) else None
        if pending is not None and failure is None:
            try:
                pending.result()
            except Exception as error:
                failure = error
        told = failure and [system_error(failure) is None, _reason(failure)]
        failures = [one for one in distributed.gather(told) if one]
        if not failures:
            return None
        # A writer that failed remembers a checkpoint that is not there; the next save makes one.
        has_abandoned_threads.set()
        self._close_writer()
        # Others have only waited for the one that the system refused something.
        return min(failures)[1]

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

    def close(self) -> None:
        """Waits until everything is written; asks no other process, which may be at something else.

        Of several processes, for as long as a process that fails waits for the others.
        """
        pending, self._pending = self._pending, None
        if isinstance(pending, Exception):
            has_abandoned_threads.set()
        elif pending is not None:
            several = jax.process_count() > 1
            try:
                pending.result(timeout=distributed.FAREWELL_SECONDS if several else None)
            except TimeoutError:
                has_abandoned_threads.set()
                return
            except Exception:
                has_abandoned_threads.set()
        self._close_writer()

    def _close_writer(self) -> None:
        writer, self._checkpointer = self._checkpointer, None
        if writer is not None:
            with contextlib.suppress(Exception):  # told already
                writer.close()


def _remove(remove: Callable[[int], None], step: int) -> None:
    """Removes an old checkpoint; the new one, which is there by then, is whole without that."""
    try:
        remove(step)
    except OSError as error:
        print_line(
            f"the checkpoint of step {step}, which is kept no longer, could not be removed "
            f"({_reason(error)}): remove it yourself, or its room is lost"
        )


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
