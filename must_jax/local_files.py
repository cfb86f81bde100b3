"""Local files: others' are read that are no pipes and have an end, ours are written whole."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pathlib
import stat
from typing import BinaryIO, cast

from must_jax.errors import UserError

# Bytes. Texts are names, sentences, configurations and vocabularies; none of them comes near.
MAX_TEXT = 2**27
# Why a file that is whole may not be read for the time being: most is of networks, and of programs
# behind a mount.
MAY_PASS = frozenset(
    {
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
    }
)
# What file systems answer that have no way to be told to bring a file to the disk.
_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


def open_regular(path: str | os.PathLike[str]) -> io.FileIO:
    """Opens a file to be read, unbuffered.

    Raises:
      OSError: it can't be opened, or is no file but a pipe or a device, of which a read may wait
        or go on for ever.
    """
    try:
        file = io.FileIO(path, "rb", opener=_without_waiting)
    except ValueError as error:
        raise OSError(errno.EINVAL, "its name has a NUL character", os.fspath(path)) from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return file


def local_path(path: str | os.PathLike[str], *, called: str, advice: str) -> str:
    """A path with `~` filled in.

    Args:
      path: that somebody gave.
      called: the flag or field that it is of.
      advice: what to do where it is a URL.

    Raises:
      UserError: it is one, of which a folder called `gs:` would be made, or it is no Unicode, which
        the libraries that write checkpoints don't take.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{called}={path} must be a path in UTF-8") from error
    if "://" in os.fspath(path):
        raise UserError(f"{called}={path} must be a local path; {advice}")
    return os.path.expanduser(os.fspath(path))


def read_bytes(path: str | os.PathLike[str], *, limit: int | None = None) -> bytes:
    """All bytes of a file.

    Args:
      path: of the file.
      limit: bytes that it may have; None: as many as the machine's memory.

    Raises:
      OSError: it can't be read, is no regular file, or larger.
    """
    with open_regular(path) as file:
        if limit is None:
            limit = machine_memory()
        if os.fstat(file.fileno()).st_size > limit:
            raise too_large(path, limit)
        return file.readall()


def machine_memory() -> int:
    """Bytes of memory that the machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def too_large(path: str | os.PathLike[str], limit: int) -> OSError:
    """The error of a file of more than `limit` bytes."""
    return OSError(errno.EFBIG, f"larger than {limit >> 20} MiB", os.fspath(path))


def read_text(path: str | os.PathLike[str], *, encoding: str = "utf-8") -> str:
    """All of a text file; its lines end as Python's own do.

    Raises:
      OSError: it can't be read, is no regular file, or larger than `MAX_TEXT`.
      UnicodeDecodeError: it is of another encoding.
    """
    data = read_bytes(path, limit=MAX_TEXT)
    return io.TextIOWrapper(io.BytesIO(data), encoding=encoding).read()


def _without_waiting(path: str, flags: int) -> int:
    # To open a pipe is to wait for who writes to it.
    return os.open(path, flags | os.O_NONBLOCK)


def open_to_write(path: str | os.PathLike[str], mode: str) -> BinaryIO:
    """Opens a file, "wb" or "r+b", in a folder that may be somebody else's.

    Raises:
      OSError: it can't be opened, or is a link, through which another file would be overwritten, or
        a pipe or a device, which may wait for who reads or do anything.
    """

    def without_detour(path: str, flags: int) -> int:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "not a regular file", path)
        return descriptor

    return cast(BinaryIO, open(path, mode, opener=without_detour))


def refuse_link(path: str | os.PathLike[str]) -> None:
    """Refuses a folder to write in that may lead anywhere.

    Raises:
      OSError: it is a link.
    """
    if os.path.islink(path):
        raise OSError(errno.ELOOP, "it is a link", os.fspath(path))


def replace_file(path: pathlib.Path, data: bytes) -> None:
    """Writes a file, so that after a kill or a power cut it is the old one or the new one.

    Raises:
      OSError: it can't be written; nothing is left of it.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open_to_write(temporary, "wb") as file:
            file.write(data)
            file.flush()
            to_disk(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    # Not all systems let a folder be opened, or synced.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def to_disk(descriptor: int) -> None:
    """Waits until what was written to a file is on its disk, where the system has a way to.

    Raises:
      OSError: it can't get there.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
