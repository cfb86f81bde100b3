"""Checkpoints of a run: the whole state, and what the host remembers beside it."""

import hashlib
import pathlib
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from must_jax.errors import UserError
from must_jax.state import Params, TrainState


class Checkpoints:
    """The checkpoints in WORKDIR/checkpoints, one folder a step, written in the background."""

    def __init__(self, workdir: str, *, to_keep: int):
        """Opens the folder; `to_keep` is how many of the latest stay."""
        policies = ocp.training
        self._checkpointer = ocp.training.Checkpointer(
            pathlib.Path(workdir).absolute() / "checkpoints",
            save_decision_policy=policies.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.preservation_policies.LatestN(to_keep),
            cleanup_tmp_directories=True,
        )

    @property
    def latest_step(self) -> int | None:
        """Step of the latest complete checkpoint, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, state: TrainState, *, step: int, notes: dict[str, Any]) -> None:
        """Starts to write a checkpoint; `notes` are JSON values of the host's.

        The state may be donated as soon as this returns.
        """
        if step != self.latest_step:
            self._checkpointer.save_async(step, state, custom_metadata=notes)

    def restore(
        self, like: TrainState, *, sharding: jax.sharding.Sharding
    ) -> tuple[TrainState, dict[str, Any]]:
        """The latest checkpoint and its notes.

        Args:
          like: shapes and types of the state.
          sharding: where its arrays go.

        Raises:
          UserError: there is none, or it holds other arrays.
        """
        latest = self._checkpointer.latest
        if latest is None:
            raise UserError(f"{self._checkpointer.directory} has no complete checkpoint")
        abstract = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), like
        )
        try:
            state = self._checkpointer.load(latest, abstract)
        except (ValueError, KeyError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"{latest.path} does not fit this config's checkpoint and classes ({reason}); "
                "use the config it was written with, or another workdir"
            ) from error
        return state, self._checkpointer.metadata(latest).custom_metadata

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
