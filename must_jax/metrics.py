"""Metrics as JSON lines and TensorBoard events, results as JSON."""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from must_jax.errors import UserError
from must_jax.tensorboard import EventFiles


def strict_json(values: Mapping[str, Any], *, indent: int | None = None) -> str:
    """An object as JSON, which has neither NaN nor infinity (RFC 8259): both are null in it."""

    def strict(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: strict(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [strict(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(strict(values), indent=indent, allow_nan=False)


def write_json(path: str | os.PathLike, values: Mapping[str, Any]) -> None:
    """Writes `values` by `strict_json`, whole or not at all, on the first process only.

    Raises:
      UserError: it can't be written.
    """
    if jax.process_index() != 0:
        return
    temporary = f"{os.fspath(path)}.tmp"
    try:
        pathlib.Path(temporary).write_text(strict_json(values, indent=2) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})") from error


class MetricWriter:
    """Writes scalars of a step to WORKDIR/metrics.jsonl and to WORKDIR/tensorboard.

    A resumed run goes on where its checkpoint was: later lines of the file are dropped, so that
    every step is told once. Of several processes, the first writes. Lines that a full disk refuses
    are kept, and written when it takes them.
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
        self._lines = path.open("ab", buffering=0)
        self._unwritten = b""
        self._events = EventFiles(pathlib.Path(workdir) / "tensorboard", step=step)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes `scalars` under their names."""
        if not self._writes:
            return
        self._unwritten += strict_json({"step": step, **scalars}).encode() + b"\n"
        self._write_lines()
        self._events.write(step, scalars)

    def _write_lines(self) -> None:
        end = self._lines.seek(0, os.SEEK_END)
        with contextlib.suppress(OSError):
            if self._lines.write(self._unwritten) == len(self._unwritten):
                self._unwritten = b""
                return
        # What was written of a line would be read as one.
        with contextlib.suppress(OSError):
            self._lines.truncate(end)

    def close(self) -> None:
        """Writes what is left, and closes both files."""
        if not self._writes:
            return
        self._write_lines()
        self._lines.close()
        self._events.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line that a kill cut short
