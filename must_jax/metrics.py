"""Metrics as JSON lines and TensorBoard events, results as JSON."""

import contextlib
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from must_jax.errors import UserError


def write_json(path: str | os.PathLike, values: Mapping[str, Any]) -> None:
    """Writes `values` whole or not at all, on the first process only.

    Raises:
      UserError: it can't be written.
    """
    if jax.process_index() != 0:
        return
    temporary = f"{os.fspath(path)}.tmp"
    try:
        pathlib.Path(temporary).write_text(json.dumps(values, indent=2) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})") from error


class MetricWriter:
    """Writes scalars of a step to WORKDIR/metrics.jsonl and to WORKDIR/tensorboard.

    A resumed run goes on where its checkpoint was: later lines of the file are dropped, so that
    every step is told once. Of several processes, the first writes.
    """

    def __init__(self, workdir: str, *, step: int):
        """Opens both files at `step`."""
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        path = pathlib.Path(workdir) / "metrics.jsonl"
        kept = []
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
        # A reader never sees half a file, nor a kill in between lose what was kept.
        rewritten = path.with_suffix(".jsonl.tmp")
        rewritten.write_text("".join(f"{line}\n" for line in kept))
        os.replace(rewritten, path)
        self._lines = path.open("a", buffering=1)
        with _without_torch():
            import tensorboardX
        self._events = tensorboardX.SummaryWriter(
            str(pathlib.Path(workdir) / "tensorboard"), purge_step=step + 1
        )

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes `scalars` under their names."""
        if not self._writes:
            return
        self._lines.write(json.dumps({"step": step, **scalars}) + "\n")
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()

    def close(self) -> None:
        """Closes both files."""
        if not self._writes:
            return
        self._lines.close()
        self._events.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line that a kill cut short


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Hides torch, where it is installed, from who imports it only to know its tensors.

    That import takes longer than all others of a run together.
    """
    loaded = "torch" in sys.modules
    if not loaded:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if not loaded:
            del sys.modules["torch"]
