"""One run at a time writes to a workdir, where its file system has locks."""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import jax

from must_jax.errors import EXIT_STOPPED, UserError
from must_jax.progress import say

LOCK_FILE = "run.lock"
_LOOK_SECONDS = 0.2


class StoppedWaitingError(UserError):
    """The run was asked to stop before it had begun."""

    exit_code = EXIT_STOPPED


class WorkdirLock:
    """Held by the first process of a run, from when it reads its workdir to its end of any kind.

    A scheduler may start a run again while the one before still saves: that one is waited for.
    """

    def __init__(
        self,
        workdir: str,
        *,
        patience_seconds: float,
        was_asked: Callable[[], bool] = lambda: False,
    ):
        """Takes nothing yet; `was_asked` tells whether to stop waiting for it."""
        self._path = os.path.join(workdir, LOCK_FILE)
        self._patience_seconds = patience_seconds
        self._was_asked = was_asked
        self._file: int | None = None

    def __enter__(self) -> Self:
        """Takes the lock of a workdir that has had a run; makes nothing.

        Raises:
          UserError: another run has held it for `patience_seconds`.
          StoppedWaitingError: this one was asked to stop meanwhile.
        """
        self._take(os.O_RDWR)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def take(self) -> None:
        """Takes the lock of a workdir that is new, and makes it.

        Raises:
          UserError: as for `__enter__`.
        """
        if self._file is None and jax.process_index() == 0:
            with contextlib.suppress(OSError):  # told by what is written there next
                os.makedirs(os.path.dirname(self._path), exist_ok=True)
        self._take(os.O_RDWR | os.O_CREAT)

    def _take(self, flags: int) -> None:
        if self._file is not None or jax.process_index() != 0:
            return
        try:
            file = self._open(flags)
        except OSError:  # no such file yet
            return
        try:
            self._wait(file)
        except BaseException:
            os.close(file)
            raise
        self._file = file
        with contextlib.suppress(OSError):
            os.ftruncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def _open(self, flags: int) -> int:
        try:
            return os.open(self._path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        except PermissionError:  # another user's, who may hold it all the same
            return os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)

    def _wait(self, file: int) -> None:
        deadline = time.monotonic() + self._patience_seconds
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    return  # there are file systems without locks
            else:
                return
            holder = os.pread(file, 300, 0).decode(errors="replace").strip() or "another process"
            folder = os.path.dirname(self._path)
            if time.monotonic() >= deadline:
                raise UserError(
                    f"{folder} is in use by {holder}; stop that run first, or use another workdir"
                )
            if self._was_asked():
                raise StoppedWaitingError(
                    f"asked to stop while {folder} was in use by {holder}; nothing was begun"
                )
            if not told:
                say(
                    f"{folder} is in use by {holder}, which is waited for, "
                    f"{self._patience_seconds:g} s at most"
                )
                told = True
            time.sleep(_LOOK_SECONDS)
