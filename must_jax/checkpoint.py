"""What a checkpoint of a run is, and how one is found and read; writes nothing."""

import dataclasses
import errno
import functools
import hashlib
import json
import os
import pathlib
import re
import sys
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from must_jax import distributed
from must_jax.errors import UserError
from must_jax.local_files import MAY_PASS
from must_jax.state import TrainState

Notes = dict[str, Any]
# The last file that orbax writes into a step's folder; without it the folder holds no checkpoint.
COMPLETE = "_CHECKPOINT_METADATA"

# What follows the words of an error: tensorstore's pages of how it was asked.
_PAGES = re.compile(r"\n| \[tensorstore_spec|\. See full TensorStore")

# Why a file that is whole may not be read; the rights alone need somebody to mend them.
NO_DAMAGE = MAY_PASS | {errno.EACCES, errno.EPERM}


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
    """Steps of the complete checkpoints, ascending, as `found_steps` finds them."""
    return [step for step, is_complete in found_steps(workdir) if is_complete]


def found_steps(workdir: str) -> list[tuple[int, bool]]:
    """Steps of all checkpoints, ascending, and whether they are complete. Writes nothing.

    A folder becomes a step's when all is in it: one that is not complete has lost something since.
    As the first process sees them: all must call this.

    Raises:
      UserError: the folder can't be read.
    """
    steps: list[tuple[int, bool]] = []
    folder = checkpoint_folder(workdir)
    try:
        if jax.process_index() == 0 and folder.is_dir():
            found = (path for path in folder.iterdir() if path.name.isdecimal())
            steps = sorted((int(path.name), (path / COMPLETE).is_file()) for path in found)
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror})") from error
    return [(step, is_complete) for step, is_complete in distributed.from_first(steps)]


@jax.jit
def with_checksums(state: TrainState) -> dict[str, TrainState]:
    """A state, and of each of its arrays the sum of its 32-bit words, the same on any mesh."""

    def checksum(array: jax.Array) -> jax.Array:
        words = jax.lax.bitcast_convert_type(array, jnp.uint32)
        return jnp.sum(words, dtype=jnp.uint32)

    return {"state": state, "checksums": jax.tree.map(checksum, state)}


def _restore(
    workdir: str, like: TrainState, *, step: int, shardings: Any
) -> tuple[TrainState, Notes]:
    """The state and the notes of one checkpoint; what one process can't read, none takes."""
    path = checkpoint_folder(workdir) / str(step)
    loaded: Any = None
    failure = None
    try:
        loaded, notes = _read(path, like, shardings=shardings)
    except UserError as error:
        failure = [isinstance(error, DamagedCheckpointError), str(error)]
    failures = [one for one in distributed.gather(failure) if one]
    # Where any can't tell whether it is damaged, it is not passed over.
    for is_damaged, told in sorted(failures):
        raise DamagedCheckpointError(told) if is_damaged else UserError(told)
    found = with_checksums(loaded["state"])["checksums"]
    same = jax.tree.map(jnp.array_equal, found, loaded["checksums"])
    for key, is_same in jax.tree.leaves_with_path(same):
        if not is_same:
            raise _damaged(path, f"{jax.tree_util.keystr(key)} is not what was saved")
    return loaded["state"], notes


def _read(path: pathlib.Path, like: TrainState, *, shardings: Any) -> tuple[Any, Notes]:
    """This process's part of a state with its checksums, and the notes; waits for no other."""
    silence_what_comes_late()
    saved = jax.eval_shape(with_checksums, like)
    alone = ocp.Context()
    if jax.process_count() > 1:
        index = jax.process_index()
        alone.multiprocessing.primary_host = index
        alone.multiprocessing.active_processes = {index}
        alone.multiprocessing.barrier_sync_key_prefix = f"process_{index}"
    with alone:
        try:
            _require_files(path)
            (path / COMPLETE).read_bytes()  # what may not be read, orbax takes for nothing
            told = ocp.metadata(path).custom_metadata or {}
        except UserError:
            raise
        except Exception as error:
            # Orbax and tensorstore raise many types for files that are missing or damaged.
            raise _unusable(path, error) from error
        if not isinstance(told, dict) or told != told_beside(told.get("notes"), told.get("shapes")):
            raise _damaged(path, "its notes are not what was saved")
        if told["shapes"] != shapes_of(like):
            raise UserError(
                f"{path} holds the state of another model than this config's checkpoint, image "
                "size and classes make; use the config it was written with, or another workdir"
            )
        mesh = jax.tree.leaves(shardings)[0].mesh
        scalar = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        places = {"state": shardings, "checksums": jax.tree.map(lambda _: scalar, shardings)}
        abstract = jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), saved, places
        )
        try:
            return ocp.load(path, abstract), told["notes"]
        except Exception as error:
            raise _unusable(path, error) from error


def _require_files(folder: pathlib.Path) -> None:
    """Refuses pipes, which would be waited for, and links, through which others' files are read.

    Raises:
      UserError: there are some, which is no damage: some tools leave links to large files.
      OSError: a folder can't be read.
    """
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            _require_files(pathlib.Path(entry.path))
        elif not entry.is_file(follow_symlinks=False):
            raise UserError(
                f"{entry.path} must be a file, and is a link, a pipe or a device; put what it "
                "stands for in its place"
            )


def shapes_of(state: TrainState) -> list[list[Any]]:
    """Path and shape of every array, as JSON values."""
    leaves = jax.tree.leaves_with_path(state)
    return [[jax.tree_util.keystr(path), list(leaf.shape)] for path, leaf in leaves]


def told_beside(notes: Any, shapes: Any) -> dict[str, Any]:
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
      UserError: there is none, or all are damaged, or the latest holds other arrays than `like`,
        or can't be read for a reason that may pass.
    """
    passed_over: list[str] = []
    found = found_steps(workdir)
    complete = [one for one, is_complete in found if is_complete]
    if step is not None and step not in complete:
        there = ", ".join(map(str, complete)) or "none"
        raise UserError(
            f"{checkpoint_folder(workdir)} has no complete checkpoint of step {step}; it has those "
            f"of {there}"
        )
    for tried, is_complete in reversed(found if step is None else [(step, True)]):
        path = checkpoint_folder(workdir) / str(tried)
        try:
            if not is_complete:
                raise _damaged(path, f"it has no {COMPLETE}")
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


def system_error(error: BaseException) -> int | None:
    """The number of the system's error that another one tells of, as tensorstore does in words."""
    number = re.search(r"os_error_code='(\d+)'", str(error))
    if number:
        return int(number[1])
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return errno.ENOMEM
    if isinstance(error, OSError):
        return error.errno
    cause = error.__cause__ or error.__context__
    return system_error(cause) if cause is not None else None


@functools.cache
def silence_what_comes_late() -> None:
    """No word of each file that tensorstore ends with, or orbax drops, after it gave up on all."""
    warnings.filterwarnings("ignore", r"coroutine .* was never awaited", RuntimeWarning)
    show = sys.unraisablehook

    def show_others(told: Any) -> None:
        code = getattr(told.object, "cr_code", None)
        if str(told.exc_value) != "Event loop is closed" and "orbax" not in str(code):
            show(told)

    sys.unraisablehook = show_others


def _unusable(path: pathlib.Path, error: Exception) -> UserError:
    number = system_error(error)
    if number not in NO_DAMAGE:
        return _damaged(path, str(error))
    return UserError(
        f"{path} cannot be read ({os.strerror(number)}), which may not be its own fault: mend that "
        "and start again, or move it away to go on from the checkpoint before"
    )


def _damaged(path: pathlib.Path, reason: str) -> DamagedCheckpointError:
    told = _PAGES.split(reason.strip(), maxsplit=1)[0]
    return DamagedCheckpointError(f"{path} is damaged ({told})")


def digest(tree: Any) -> str:
    """SHA-256 over the bytes of all arrays of a tree, in the order of their paths.

    Wherever their parts lie: all processes must call it.
    """
    leaves = {jax.tree_util.keystr(path): a for path, a in jax.tree.leaves_with_path(tree)}
    sha256 = hashlib.sha256()
    for path in sorted(leaves):
        sha256.update(np.ascontiguousarray(distributed.whole(leaves[path])).tobytes())
    return sha256.hexdigest()
