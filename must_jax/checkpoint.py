"""Checkpoints of a run: the whole state, and what the host remembers beside it."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
import sys
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from must_jax import distributed
from must_jax.errors import UserError, one_line
from must_jax.state import TrainState

Notes = dict[str, Any]
# The last file that orbax writes into a step's folder; without it the folder holds no checkpoint.
COMPLETE = "_CHECKPOINT_METADATA"

# Where a write fails, some of orbax's threads wait for minutes for what will not come, and the end
# of the process for them.
has_abandoned_threads = threading.Event()


class DamagedCheckpointError(UserError):
    """A checkpoint that was complete once, and can't be read or is not what was written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
    """A checkpoint that was read.

    Attributes:
      state: of the run.
      notes: the host's, JSON values.
      step: that it is of.
      passed_over: why later checkpoints were not used, a line each.
    """

    state: TrainState
    notes: Notes
    step: int
    passed_over: list[str]


def checkpoint_folder(workdir: str) -> pathlib.Path:
    """WORKDIR/checkpoints, one folder a step below it."""
    return pathlib.Path(workdir).absolute() / "checkpoints"


def complete_steps(workdir: str) -> list[int]:
    """Steps of the complete checkpoints, ascending. Writes nothing.

    As the first process sees them: all must call this.
    """
    steps: list[int] = []
    folder = checkpoint_folder(workdir)
    if jax.process_index() == 0 and folder.is_dir():
        found = (path for path in folder.iterdir() if path.name.isdecimal())
        steps = sorted(int(path.name) for path in found if (path / COMPLETE).is_file())
    return distributed.from_first(steps)


@jax.jit
def _with_checksums(state: TrainState) -> dict[str, TrainState]:
    """A state, and of each of its arrays the sum of its 32-bit words, the same on any mesh."""

    def checksum(array: jax.Array) -> jax.Array:
        words = jax.lax.bitcast_convert_type(array, jnp.uint32)
        return jnp.sum(words, dtype=jnp.uint32)

    return {"state": state, "checksums": jax.tree.map(checksum, state)}


def _restore(
    workdir: str, like: TrainState, *, step: int, shardings: Any
) -> tuple[TrainState, Notes]:
    """The state and the notes of one checkpoint."""
    path = checkpoint_folder(workdir) / str(step)
    saved = jax.eval_shape(_with_checksums, like)
    try:
        told = ocp.metadata(path).custom_metadata or {}
    except Exception as error:
        # Orbax and tensorstore raise many types for files that are missing or damaged.
        raise _damaged(path, str(error)) from error
    if told != _told(told.get("notes"), told.get("shapes")):
        raise _damaged(path, "its notes are not what was saved")
    if told["shapes"] != _shapes(like):
        raise UserError(
            f"{path} holds the state of another model than this config's checkpoint, image size "
            "and classes make; use the config it was written with, or another workdir"
        )
    mesh = jax.tree.leaves(shardings)[0].mesh
    scalar = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    places = {"state": shardings, "checksums": jax.tree.map(lambda _: scalar, shardings)}
    abstract = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), saved, places
    )
    try:
        loaded = ocp.load(path, abstract)
    except Exception as error:
        raise _damaged(path, str(error)) from error
    found = _with_checksums(loaded["state"])["checksums"]
    same = jax.tree.map(jnp.array_equal, found, loaded["checksums"])
    for key, is_same in jax.tree.leaves_with_path(same):
        if not is_same:
            raise _damaged(path, f"{jax.tree_util.keystr(key)} is not what was saved")
    return loaded["state"], told["notes"]


def _shapes(state: TrainState) -> list[list[Any]]:
    """Path and shape of every array, as JSON values."""
    leaves = jax.tree.leaves_with_path(state)
    return [[jax.tree_util.keystr(path), list(leaf.shape)] for path, leaf in leaves]


def _told(notes: Any, shapes: Any) -> dict[str, Any]:
    """What is written beside the arrays, with its SHA-256."""
    text = json.dumps([notes, shapes], sort_keys=True)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    return {"notes": notes, "shapes": shapes, "checksum": checksum}


def restore_latest(
    workdir: str, like: TrainState, *, shardings: Any, step: int | None = None
) -> Restored:
    """The latest checkpoint that is whole. Writes nothing. All processes must call it.

    Args:
      workdir: of the run.
      like: shapes and types of the state.
      shardings: where its arrays go, a tree like it; not necessarily where they were.
      step: of the only one to look at; None for all.

    Raises:
      UserError: there is none, or all are damaged, or the latest holds other arrays than `like`.
    """
    passed_over: list[str] = []
    steps = complete_steps(workdir)
    if step is not None and step not in steps:
        there = ", ".join(map(str, steps)) or "none"
        raise UserError(
            f"{checkpoint_folder(workdir)} has no complete checkpoint of step {step}; it has those "
            f"of {there}"
        )
    for tried in reversed(steps if step is None else [step]):
        try:
            state, notes = _restore(workdir, like, step=tried, shardings=shardings)
        except DamagedCheckpointError as error:
            passed_over.append(str(error))
        else:
            return Restored(state=state, notes=notes, step=tried, passed_over=passed_over)
    folder = checkpoint_folder(workdir)
    if passed_over:
        raise UserError(
            f"{passed_over[0]}, and no other checkpoint in {folder} is whole; use another workdir "
            "to start anew"
        )
    raise UserError(f"{folder} has no complete checkpoint to go on from")


def _damaged(path: pathlib.Path, reason: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(f"{path} is damaged ({reason.strip().partition(chr(10))[0]})")


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
        _silence_writes_that_come_late()
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
                _with_checksums(state),
                custom_metadata=_told(notes, _shapes(state)),
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


@functools.cache
def _silence_writes_that_come_late() -> None:
    """No word of each write that tensorstore ends, or orbax drops, after it gave up on all."""
    warnings.filterwarnings("ignore", r"coroutine .* was never awaited", RuntimeWarning)
    show = sys.unraisablehook

    def show_others(told: Any) -> None:
        if str(told.exc_value) != "Event loop is closed":
            show(told)

    sys.unraisablehook = show_others


def _reason(error: Exception) -> str:
    """One line of why files can't be written, by the words of the system where it has some."""
    number = re.search(r"os_error_code='(\d+)'", str(error))  # tensorstore's
    if number:
        return os.strerror(int(number[1]))
    told = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
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


def digest(tree: Any) -> str:
    """SHA-256 over the bytes of all arrays of a tree, in the order of their paths.

    Wherever their parts lie: all processes must call it.
    """
    leaves = {jax.tree_util.keystr(path): a for path, a in jax.tree.leaves_with_path(tree)}
    sha256 = hashlib.sha256()
    for path in sorted(leaves):
        sha256.update(np.ascontiguousarray(distributed.whole(leaves[path])).tobytes())
    return sha256.hexdigest()
