"""Checkpoints of a run: the whole state, and what the host remembers beside it."""

import hashlib
import pathlib
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from must_jax.errors import UserError
from must_jax.state import Params, TrainState

Notes = dict[str, Any]
# The last file that orbax writes into a step's folder; without it the folder holds no checkpoint.
COMPLETE = "_CHECKPOINT_METADATA"


def checkpoint_folder(workdir: str) -> pathlib.Path:
    """WORKDIR/checkpoints, one folder a step below it."""
    return pathlib.Path(workdir).absolute() / "checkpoints"


def latest_step(workdir: str) -> int | None:
    """Step of the latest complete checkpoint, or None. Writes nothing."""
    folder = checkpoint_folder(workdir)
    if not folder.is_dir():
        return None
    steps = (path for path in folder.iterdir() if path.name.isdecimal())
    return max((int(path.name) for path in steps if (path / COMPLETE).is_file()), default=None)


def restore(
    workdir: str, like: TrainState, *, sharding: jax.sharding.Sharding
) -> tuple[TrainState, Notes]:
    """The latest checkpoint and its notes. Writes nothing.

    Args:
      workdir: of the run.
      like: shapes and types of the state.
      sharding: where its arrays go.

    Raises:
      UserError: there is none, it holds other arrays, or it is damaged.
    """
    step = latest_step(workdir)
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
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), like
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
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.iterdir():
                if path.name.isdecimal() and not (path / COMPLETE).exists():
                    # To orbax it would be the latest checkpoint, and hide the one before.
                    path.rename(path.with_name(f"incomplete-{path.name}"))
        except OSError as error:
            raise UserError(f"{folder} cannot be written ({error.strerror})") from error
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


def digest(params: Params) -> str:
    """SHA-256 over the bytes of all parameters, in the order of their paths."""
    leaves = {jax.tree_util.keystr(path): a for path, a in jax.tree.leaves_with_path(params)}
    sha256 = hashlib.sha256()
    for path in sorted(leaves):
        sha256.update(np.ascontiguousarray(leaves[path]).tobytes())
    return sha256.hexdigest()
