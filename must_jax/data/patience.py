"""Reads that fail for a while are tried again, of remote files and of local ones."""

from __future__ import annotations

import errno
import random
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

from must_jax.errors import EXIT_STOPPED, UserError, print_line, reason

_T = TypeVar("_T")

# What another try does not mend: of the file itself, and of the disk that it is copied to.
FINAL = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
# What another try may mend of a local file: most is of networks and of programs behind a mount.
_MAY_PASS = (
    errno.EAGAIN,
    errno.EBUSY,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EIO,
    errno.EMFILE,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOTCONN,
    errno.EREMOTEIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
)
# Seconds between tries. The libraries for remote files try again too, each in its own way: s3fs
# gives up after some 10 s of answers that the service is busy, and 2 s of answers cut short.
_WAITS = (1, 2, 4, 8, 16, 32)
_OUTAGE_WAITS = (64,) * 18  # beyond, while nothing else can be read: a quarter of an hour
_SILENCE = 60.0  # seconds from one line on a topic to the next
_last_told: dict[str, float] = {}
_last_read: dict[str, Callable[[], Any]] = {}  # what brought bytes last, by bucket


class AwayError(UserError):
    """A bucket or a file system that was there has been away for long; the run may go on later."""

    exit_code = EXIT_STOPPED


def patiently(path: str, read: Callable[[], _T]) -> _T:
    """What `read` makes of a file or a URL.

    Where that fails for a reason that may pass, it is tried again for about a minute, and for a
    quarter of an hour while what could be read before from the same place can't be read either.

    Raises:
      OSError: It can't be had.
      AwayError: Nor can anything else.
    """
    waits, outage_waits = iter(_WAITS), iter(_OUTAGE_WAITS)
    while True:
        try:
            found = read()
            if found and isinstance(found, bytes):
                _last_read[_place(path)] = read
            return found
        except OSError as error:
            if not _may_pass(error, path):
                raise
            wait = next(waits, None)
            if wait is None:
                if not _is_away(path):
                    raise
                wait = next(outage_waits, None)
            if wait is None:
                raise AwayError(
                    f"{path}: {reason(error)}; nor could what was read before it be read again, "
                    "for a quarter of an hour; when it can, the same command goes on from the last "
                    "checkpoint"
                ) from error
            tell_seldom(
                "outage",
                f"{path}: {reason(error)}; reads that fail so are tried again for a minute, and "
                "for a quarter of an hour while nothing else can be read",
            )
        # Not all threads and hosts at once, of which there are thousands.
        time.sleep(wait * random.uniform(0.5, 1))


def _place(path: str) -> str:
    """The bucket of a URL; all local files are of one place."""
    return "/".join(path.split("/")[:3]) if "://" in path else ""


def _may_pass(error: OSError, path: str) -> bool:
    if "://" not in path:
        return error.errno in _MAY_PASS
    return not isinstance(error, FINAL) and error.errno not in _DISK_IS_FULL


def _is_away(path: str) -> bool:
    """Whether what was read last from the same place can't be read; False where nothing was."""
    place = _place(path)
    if place not in _last_read:
        return False
    try:
        _last_read[place]()
    except OSError as error:
        return _may_pass(error, path)
    return False


def tell_seldom(topic: str, text: str) -> None:
    """Prints a line to stderr, for all threads and files of which the same could be said."""
    now = time.monotonic()
    if now - _last_told.get(topic, -_SILENCE) >= _SILENCE:
        _last_told[topic] = now
        print_line(text, file=sys.stderr)
