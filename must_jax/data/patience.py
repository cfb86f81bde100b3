"""Reads that fail for a while are tried again, of remote files and of local ones."""

from __future__ import annotations

import errno
import random
import sys
import threading
from collections.abc import Callable, Mapping
from time import monotonic
from typing import TypeVar

from must_jax.data.remote import is_remote, remote
from must_jax.errors import EXIT_STOPPED, LostInputError, print_line, reason
from must_jax.local_files import MAY_PASS, open_regular

_T = TypeVar("_T")

# What another try does not mend: of the file itself, and of the disk that it is copied to.
FINAL = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
# Seconds between tries. The libraries for remote files try again too, each in its own way: s3fs
# gives up after some 10 s of answers that the service is busy, and 2 s of answers cut short.
_WAITS = (1, 2, 4, 8, 16, 32)
_LOCAL_WAITS = _WAITS[:3]  # a disk that has lost a file's blocks loses no more time to it
_OUTAGE_SECONDS = 15 * 60.0  # while nothing else can be read
_OUTAGE_WAIT = 32.0  # seconds between tries then
_SILENCE = 60.0  # seconds from one line on a topic to the next
_last_told: dict[str, float] = {}
_last_read: dict[str, str] = {}  # the file that bytes came from last, by bucket
_is_over = threading.Event()  # nobody waits any more


class AwayError(LostInputError):
    """A bucket or a file system that was there has been away for long; the run may go on later."""

    exit_code = EXIT_STOPPED


def patiently(path: str, read: Callable[[], _T]) -> _T:
    """What `read` makes of a file or a URL.

    Where that fails for a reason that may pass, it is tried again: a local file for some seconds, a
    remote one for a minute, and either for a quarter of an hour while what was read before from the
    same place can't be read either.

    Raises:
      OSError: It can't be had.
      AwayError: Nor can anything else.
    """
    waits = iter(_WAITS if is_remote(path) else _LOCAL_WAITS)
    began = monotonic()
    while True:
        try:
            found = read()
            if found and isinstance(found, bytes):
                _last_read[_place(path)] = path
            return found
        except OSError as error:
            if not _may_pass(error, path):
                raise
            wait: float | None = next(waits, None)
            if wait is None:
                if not _is_away(path):
                    raise
                if monotonic() - began > _OUTAGE_SECONDS:
                    give_up()
                wait = _OUTAGE_WAIT
            tell_seldom(
                "outage",
                f"{path}: {reason(error)}; reads that fail so are tried again, for a quarter of an "
                "hour while nothing else can be read",
            )
            # Not all threads and hosts at once, of which there are thousands.
            if _is_over.wait(wait * random.uniform(0.5, 1)):
                raise AwayError(
                    f"{path}: {reason(error)}; nor could what was read before it be read again, "
                    "for a quarter of an hour; when it can, the same command goes on from the last "
                    "checkpoint"
                ) from error


def give_up() -> None:
    """Ends the patience of all threads, which the end of the process would wait for."""
    _is_over.set()


def be_patient() -> None:
    """Undoes `give_up`, for another run in the same process."""
    _is_over.clear()


def known() -> dict[str, str]:
    """What tells an outage from a file that is gone, for `know` in another process."""
    return dict(_last_read)


def know(files: Mapping[str, str]) -> None:
    """Takes what another process knows, for this one has read nothing yet."""
    _last_read.update(files)


def _place(path: str) -> str:
    """The bucket of a URL; all local files are of one place."""
    return "/".join(path.split("/")[:3]) if is_remote(path) else ""


def _may_pass(error: OSError, path: str) -> bool:
    if not is_remote(path):
        return error.errno in MAY_PASS
    return not isinstance(error, FINAL) and error.errno not in _DISK_IS_FULL


def _is_away(path: str) -> bool:
    """Whether the file that was read last can't be read now; False where none was."""
    last = _last_read.get(_place(path))
    if last is None:
        return False
    try:
        if is_remote(last):
            with remote(last) as (system, inner):
                system.cat_file(inner, start=0, end=1)
        else:
            with open_regular(last) as file:
                file.read(1)
    except OSError as error:
        return _may_pass(error, last)
    return False


def tell_seldom(topic: str, text: str) -> None:
    """Prints a line to stderr, for all threads and files of which the same could be said."""
    now = monotonic()
    if now - _last_told.get(topic, -_SILENCE) >= _SILENCE:
        _last_told[topic] = now
        print_line(text, file=sys.stderr)
