"""Scalars as TensorBoard events."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from must_jax.errors import UserError
from must_jax.local_files import refuse_link


class EventFiles:
    """Writes scalars of a step to event files in a folder.

    A file that can't be written to, on a full disk, is left as it is, and the next scalars begin
    another: TensorBoard reads all files of a folder.
    """

    def __init__(self, folder: str | os.PathLike[str], *, step: int):
        """Hides what earlier files have of later steps than `step`.

        Raises:
          UserError: the folder can't be written, or is a link, which may lead anywhere.
        """
        with _without_torch():
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2, summary_pb2

        self._make_writer = EventsWriter
        self._event = event_pb2.Event
        self._summary = summary_pb2.Summary
        self._prefix = os.path.join(folder, "events")
        self._writer: Any = None
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        try:
            refuse_link(folder)
            os.makedirs(folder, exist_ok=True)
            self._write(self._event(wall_time=time.time(), step=step + 1, session_log=start))
        except OSError as error:
            self.close()
            raise UserError(
                f"{os.fspath(folder)} cannot be written ({error.strerror}); it is the folder of "
                "TensorBoard's files: move away what is there, or make room"
            ) from error

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes `scalars` under their names, if the disk takes them."""
        values = [
            self._summary.Value(tag=name, simple_value=value) for name, value in scalars.items()
        ]
        summary = self._summary(value=values)
        try:
            self._write(self._event(wall_time=time.time(), step=step, summary=summary))
        except OSError:
            self.close()

    def _write(self, event: Any) -> None:
        if self._writer is None:
            # Of the same second, two files would have the same name.
            self._writer = self._make_writer(self._prefix, f".{time.time_ns()}")
        self._writer.write_event(event)
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        with contextlib.suppress(OSError):
            if self._writer is not None:
                self._writer.close()
        self._writer = None


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
