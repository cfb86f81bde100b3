"""Metrics as JSON lines and TensorBoard events, results as JSON."""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from must_jax.errors import UserError, print_line
from must_jax.local_files import read_bytes, replace_file, to_disk
from must_jax.tensorboard import EventFiles

NAMED_STEPS = 8  # of lines that are missing


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
    text = strict_json(values, indent=2) + "\n"
    try:
        replace_file(pathlib.Path(path), text.encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})") from error


class MetricWriter:
    """Writes scalars of a step to WORKDIR/metrics.jsonl and to WORKDIR/tensorboard.

    A resumed run goes on where its checkpoint was: later lines of the file are dropped, and none of
    the checkpoint's own step is repeated, so that every step is told once. Of several processes,
    the first writes. Lines that a full disk refuses are kept, told, and written when it takes them;
    `sync` gives them to a checkpoint, `take_back` takes them from it.
    """

    def __init__(self, workdir: str, *, step: int):
        """Opens both files at `step`.

        Raises:
          UserError: one of them can't be read or written.
        """
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        self._path = pathlib.Path(workdir) / "metrics.jsonl"
        kept = [line for line in _read_lines(self._path) if _step_of(line) <= step]
        data = b"".join(line + b"\n" for line in kept)
        try:
            # A reader never sees half a file, nor a kill in between lose what was kept.
            replace_file(self._path, data)
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            raise UserError(
                f"{self._path} cannot be written ({error.strerror}); mend that, and start the same "
                "command again"
            ) from error
        # An evaluation that came after the checkpoint of its step is done again.
        self._told = {line for line in kept if _step_of(line) == step}
        self._end = len(data)
        self._unwritten: list[bytes] = []
        self._unsynced: list[bytes] = []
        self._reason: str | None = None  # why lines are unwritten
        try:
            self._events = EventFiles(pathlib.Path(workdir) / "tensorboard", step=step)
        except UserError:
            self._file.close()
            raise

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes `scalars` under their names."""
        if not self._writes:
            return
        line = strict_json({"step": step, **scalars}).encode()
        if line in self._told:
            return
        self._unwritten.append(line + b"\n")
        self._write_lines()
        self._events.write(step, scalars)

    def sync(self) -> list[str]:
        """Brings the lines so far to the disk, and returns those that it does not take.

        To be called before a checkpoint begins, which is to hold what this returns: the steps up
        to it are not done again, so a power cut may not take their lines.
        """
        if not self._writes:
            return []
        self._write_lines()
        try:
            to_disk(self._file.fileno())
        except OSError as error:
            # What of them is on the disk nobody knows, and the next fsync would not tell again.
            self._end = max(0, self._end - sum(map(len, self._unsynced)))
            self._unwritten = self._unsynced + self._unwritten
            with contextlib.suppress(OSError):
                self._cut()
            self._tell(error)
        self._unsynced = []
        return [line.decode().rstrip() for line in self._unwritten]

    def take_back(self, lines: Sequence[str]) -> None:
        """Writes those of `lines`, which `sync` returned before a checkpoint, that the file lacks.

        Raises:
          UserError: the file can't be read.
        """
        if not self._writes or not lines:
            return
        # The disk may have taken them after the checkpoint.
        there = set(_read_lines(self._path))
        encoded = [line.encode("utf-8", "replace") for line in lines]
        missing = [line for line in encoded if line not in there]
        self._unwritten += [line + b"\n" for line in missing if _step_of(line) < math.inf]
        self._write_lines()

    def _write_lines(self) -> None:
        if not self._unwritten:
            return
        data = left = b"".join(self._unwritten)
        try:
            self._cut()
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            # What was written of a line would be read as one.
            with contextlib.suppress(OSError):
                self._cut()
            self._tell(error)
            return
        self._end += len(data)
        self._unsynced += self._unwritten
        self._unwritten = []
        self._reason = None

    def _cut(self) -> None:
        """Cuts off what lies behind the last line that was written whole."""
        size = self._file.seek(0, os.SEEK_END)
        if size > self._end:
            self._file.truncate(self._end)
        self._end = min(self._end, size)

    def _tell(self, error: OSError) -> None:
        reason = error.strerror or str(error)
        if self._reason is None:
            print_line(
                f"{self._path} cannot be written ({reason}); training goes on, and log lines are "
                "kept until it can"
            )
        self._reason = reason

    def close(self) -> None:
        """Writes what is left, and closes both files; tells the steps whose lines are missing."""
        if not self._writes:
            return
        self._write_lines()
        if self._unwritten:
            steps = [int(_step_of(line)) for line in self._unwritten]
            print_line(
                f"{self._path} lacks the log lines of {_in_words(steps)} ({self._reason}); mend "
                "that, and the same command adds them"
            )
        with contextlib.suppress(OSError):
            self._file.close()
        self._events.close()


def _in_words(steps: Sequence[int]) -> str:
    """Steps in words; of many, the first ones and the last."""
    different = sorted(set(steps))
    if len(different) == 1:
        return f"step {different[0]}"
    if len(different) <= NAMED_STEPS:
        return f"steps {', '.join(map(str, different))}"
    first = ", ".join(map(str, different[: NAMED_STEPS - 1]))
    return f"{len(different)} steps: {first}, and on to {different[-1]}"


def _read_lines(path: pathlib.Path) -> list[bytes]:
    """The lines of a file; none where it is missing.

    Raises:
      UserError: it can't be read.
    """
    try:
        return read_bytes(path).splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); it is the file of log lines: move away "
            "what is there, or use another workdir"
        ) from error


def _step_of(line: bytes) -> float:
    """The step of a log line; infinity where it is none, as a kill or a power cut leaves it."""
    try:
        step = json.loads(line.decode())["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf
    return step if isinstance(step, int) else math.inf
