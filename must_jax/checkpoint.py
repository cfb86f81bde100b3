"""Checkpoints of a run: the whole state, and what the host remembers beside it."""

import hashlib
import pathlib
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from must_jax import distributed
from must_jax.errors import UserError
from must_jax.state import Params, TrainState

Notes = dict[str, Any]
# The last file that orbax writes into a step's folder; without it the folder holds no checkpoint.
COMPLETE = "_CHECKPOINT_METADATA"


def checkpoint_folder(workdir: str) -> pathlib.Path:
    """WORKDIR/checkpoints, one folder a step below it."""
    return pathlib.Path(workdir).absolute() / "checkpoints"


def latest_step(workdir: str) -> int | None:
    """Step of the latest complete checkpoint, or None. Writes nothing.

    As the first process sees it: all must call this.
    """
    step = None
    folder = checkpoint_folder(workdir)
    if jax.process_index() == 0 and folder.is_dir():
        steps = (path for path in folder.iterdir() if path.name.isdecimal())
        complete = (int(path.name) for path in steps if (path / COMPLETE).is_file())
        step = max(complete, default=None)
    return distributed.from_first(step)


def restore(
    workdir: str, like: TrainState, *, step: int | None, shardings: Any
) -> tuple[TrainState, Notes]:
    """A checkpoint and its notes. Writes nothing.

    Args:
      workdir: of the run.
      like: shapes and types of the state.
      step: of the checkpoint, from `latest_step`.
      shardings: where its arrays go, a tree like it; not necessarily where they were.

    Raises:
      UserError: there is none, it holds other arrays, or it is damaged.
    """
    if step is None:
        raise UserError(f"{checkpoint_folder(workdir)} has no complete checkpoint to go on from")
    path = checkpoint_folder(workdir) / str(step)
    try:
        metadata = ocp.metadata(path)
    except Exception as error:
        # Orbax and tensorstore raise many types for files that are missing or damaged.
        raise _damaged(path, error) from error
    expected = {jax.tree_util.keystr(p): a.shape for p, a in jax.tree.leaves_with_path(like)}
    found = jax.tree.leaves(metadata.metadata, is_leaf=lambda a: hasattr(a, "shape"))
    if sorted(expected.values()) != sorted(tuple(a.shape) for a in found):
        raise UserError(
            f"{path} holds the state of another model than this config's checkpoint, image size "
            "and classes make; use the config it was written with, or another workdir"
        )
    abstract = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), like, shardings
    )
    try:
        return ocp.load(path, abstract), metadata.custom_metadata
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path: pathlib.Path, error: Exception) -> UserError:
    reason = str(error).strip().partition("\n")[0]
    return UserError(
        f"{path} is damaged ({reason}); move it away to go on from the checkpoint before it"
    )


class Checkpoints:
    """Writes the checkpoints of a run, in the background."""

    def __init__(self, workdir: str, *, to_keep: int):
        """Opens the folder; `to_keep` is how many of the latest stay.

        Raises:
          UserError: it can't be written.
        """
        folder = checkpoint_folder(workdir)
        if jax.process_index() == 0:
            _prepare(folder)
        distributed.gather(None)  # the others wait for the first
        if not folder.is_dir():
            raise UserError(
                f"{folder} is not seen by process {jax.process_index()}; --workdir must lie on a "
                "file system that all processes share"
            )
        policies = ocp.training
        self._checkpointer = ocp.training.Checkpointer(
            folder,
            save_decision_policy=policies.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.preservation_policies.LatestN(to_keep),
            cleanup_tmp_directories=True,
        )

    def save(self, state: TrainState, *, step: int, notes: Notes) -> None:
        """Starts to write a checkpoint; `notes` are JSON values of the host's.

        The state may be donated as soon as this returns.
        """
        self._checkpointer.save_async(step, state, custom_metadata=notes)

    def close(self) -> None:
        """Waits until everything is written."""
        self._checkpointer.close()


def _prepare(folder: pathlib.Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if path.name.isdecimal() and not (path / COMPLETE).exists():
                # To orbax it would be the latest checkpoint, and hide the one before.
                path.rename(path.with_name(f"incomplete-{path.name}"))
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror})") from error


def digest(params: Params) -> str:
    """SHA-256 over the bytes of all parameters, in the order of their paths.

    Wherever their parts lie: all processes must call it.
    """
    leaves = {jax.tree_util.keystr(path): a for path, a in jax.tree.leaves_with_path(params)}
    sha256 = hashlib.sha256()
    for path in sorted(leaves):
        sha256.update(np.ascontiguousarray(distributed.whole(leaves[path])).tobytes())
    return sha256.hexdigest()
