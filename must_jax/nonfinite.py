"""Steps that are not finite: counted and named, and after too many in a row the run stops."""

import collections
import dataclasses
import io
import pathlib
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from must_jax import distributed
from must_jax.checkpoint import restore_latest
from must_jax.checkpoint_writer import Checkpoints
from must_jax.convert.zip_directory import check_directory
from must_jax.data.sources import Source
from must_jax.errors import UserError, first_line
from must_jax.local_files import open_regular
from must_jax.metrics import strict_json
from must_jax.noted import wrong_in_step
from must_jax.progress import STEPS_AHEAD, say
from must_jax.state import TrainState

DUMP = "nonfinite"  # folder below the workdir
NAMED_RECORDS = 8  # of a batch, in the log beside the numbers of all; the dump has all names


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
        """Looks at all that was started.

        Raises:
          UserError: as `note` does.
        """
        while self._unseen:
            self._look(self._unseen.popleft(), state)

    def _look(self, started: _Started, state: TrainState) -> None:
        if started.metrics["is_finite"]:
            self.in_a_row = 0
            return
        self.count += 1
        self.in_a_row += 1
        gathered = distributed.gather(started.records.tolist())
        # Processes that share rows have them all.
        everywhere = list(dict.fromkeys(record for theirs in gathered for record in theirs))
        fetched = jax.device_get(dict(started.metrics))
        values = {name: float(value) for name, value in fetched.items()}
        bad = [name for name, value in values.items() if not np.isfinite(value)]
        bad = bad or ["the teacher's logits or the new parameters"]
        names = [self._source.name_of(record) for record in everywhere]
        say(
            f"step {started.step} skipped: {', '.join(bad)} not finite; its images are "
            f"{name_some(names)}, records {' '.join(map(str, everywhere))}"
        )
        if self.in_a_row < self._limit:
            return
        folder = _folder(self._workdir)
        told = {
            "step": started.step,
            "steps_per_epoch": self._steps_per_epoch,
            "metrics": {name: repr(value) for name, value in values.items()},
            "images": names,
        }
        diagnosis = (
            f"{self.in_a_row} steps in a row were not finite, up to step {started.step} "
            f"({', '.join(bad)}): lower config.learning_rate"
        )
        try:
            _dump(folder, state=state, batch=started.batch, told=told)
        except (OSError, UserError) as error:
            raise UserError(
                f"{diagnosis}; and the dump could not be written ({first_line(error)}): when that "
                f"is mended, the same command leaves that step in {folder}"
            ) from error
        raise UserError(
            f"{diagnosis}, or look for what is wrong with --mode=replay --disable_jit, which "
            f"repeats that step from {folder}"
        )


def name_some(names: Sequence[str]) -> str:
    """The first images of a batch in words, and how many more there are."""
    more = len(names) - NAMED_RECORDS
    return ", ".join(names[:NAMED_RECORDS]) + (f" and {more} more" if more > 0 else "")


def _folder(workdir: str) -> pathlib.Path:
    return pathlib.Path(workdir).absolute() / DUMP


def _dump(
    folder: pathlib.Path, *, state: TrainState, batch: Mapping[str, jax.Array], told: dict[str, Any]
) -> None:
    """Leaves the state before a step, its batch, and what came out of it, or nothing at all.

    All processes must call it.

    Raises:
      OSError: it can't be written; on the first process alone.
      UserError: likewise.
    """
    writes = jax.process_index() == 0
    partial = folder.with_name(f"{folder.name}.tmp")
    arrays = {name: distributed.whole(array) for name, array in batch.items()}
    # Skipped steps changed nothing but the count.
    step = jax.device_put(np.int32(told["step"] - 1), state.step.sharding)
    try:
        if writes:
            _remove(partial)
        with Checkpoints(str(partial), to_keep=1, step=0) as checkpoints:
            checkpoints.save(
                dataclasses.replace(state, step=step),
                step=told["step"],
                notes=told | {"batch": _described(arrays)},
            )
            failure = checkpoints.finish()
        if failure is not None:
            raise UserError(failure)
        if writes:
            packed = io.BytesIO()
            np.savez(packed, **arrays)  # type: ignore[arg-type]
            (partial / "batch.npz").write_bytes(packed.getbuffer())
            (partial / "step.json").write_text(strict_json(told, indent=2) + "\n")
            _put_in_place(partial, folder)
    except BaseException:
        if writes:
            _remove(partial)
        raise
    distributed.gather(None)  # when the others end, they end the first


def _described(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {name: [str(array.dtype), list(array.shape)] for name, array in arrays.items()}


def _put_in_place(partial: pathlib.Path, folder: pathlib.Path) -> None:
    """Makes a dump the only one; one from before goes when the new one is there."""
    old = folder.with_name(f"{folder.name}.old")
    if folder.is_dir() or folder.is_symlink():
        _remove(old)
        folder.rename(old)
    partial.rename(folder)
    _remove(old)


def _remove(folder: pathlib.Path) -> None:
    """Removes what is there, as far as it can be; of a link, nothing but itself."""
    if folder.is_symlink():
        folder.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def find_dump(workdir: str) -> pathlib.Path:
    """The folder of the step that a run ended at.

    Raises:
      UserError: there is none.
    """
    folder = _folder(workdir)
    if not folder.is_dir():
        raise UserError(
            f"{folder} does not exist; a run leaves it when it ends at steps that are not finite"
        )
    return folder


def read_dump(
    folder: pathlib.Path, like: TrainState, *, shardings: Any
) -> tuple[TrainState, dict[str, np.ndarray], dict[str, Any]]:
    """The state before the step that a run ended at, its batch, and what came out of it.

    Args:
      folder: of the dump.
      like: shapes and types of the state.
      shardings: where its arrays go.

    Raises:
      UserError: it can't be read, is damaged, or of another model.
    """
    try:
        restored = restore_latest(str(folder), like, shardings=shardings)
        batch = _read_batch(folder / "batch.npz")
        wrong = wrong_in_step(restored.notes)
        if wrong:
            raise UserError(f"{folder} is no dump of a run ({wrong})")
        if _described(batch) != restored.notes["batch"]:
            raise UserError(f"{folder / 'batch.npz'} is not what was saved")
    except UserError as error:
        raise UserError(
            f"that step can't be repeated: {error}; the command that trains leaves it anew"
        ) from error
    return restored.state, batch, restored.notes


def _read_batch(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        check_directory(path)
        with open_regular(path) as file:
            # As they were saved: what is compressed may stand for any number of gigabytes.
            members = zipfile.ZipFile(file).infolist()
            if any(member.file_size > member.compress_size for member in members):
                raise ValueError("compressed")
            with np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({first_line(error)})") from error
    except Exception as error:
        # Zip files and NumPy raise many types for damage, some with the advice to load it unsafely.
        raise UserError(f"{path} is damaged") from error
