"""Reads files, local or remote (`gs://`, `s3://` and whatever else fsspec knows), in one way."""

from __future__ import annotations

import errno
import glob
import itertools
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar, cast

from must_jax.data.patience import FINAL, patiently
from must_jax.data.remote import is_remote, remote
from must_jax.errors import UserError, reason
from must_jax.local_files import open_regular, too_large

_T = TypeVar("_T")

MAX_FILES = 1_000_000  # that braces may stand for
_MAX_DIGITS = 18
# How a remote file is read that is sought in: by large blocks, of which the last two are kept. What
# file systems do by themselves differs; gcsfs asks for every tar header anew, several times.
_IN_BLOCKS: dict[str, Any] = {
    "cache_type": "blockcache",
    "block_size": 2**23,
    "cache_options": {"maxblocks": 2},
}


def _plain(path: str) -> str:
    """The path that a `file://` URL is of; others as they are."""
    protocol, separator, rest = path.partition("://")
    return rest if separator and protocol in ("file", "local") else path


def absolute(path: str | os.PathLike[str]) -> str:
    """A path with `~` and the working folder filled in; a URL as it is, but of local files."""
    path = _plain(os.fspath(path))
    if is_remote(path):
        return path.rstrip("/")
    return os.path.abspath(os.path.expanduser(path))


def join(folder: str, path: str) -> str:
    """`path` as seen from `folder`; absolute ones and URLs as they are, but of local files."""
    path = _plain(path)
    if is_remote(path) or os.path.isabs(path):
        return path
    return f"{folder}/{path}"


def parent(path: str) -> str:
    """The folder that a file lies in."""
    return path.rpartition("/")[0] if is_remote(path) else os.path.dirname(path)


def is_folder(path: str) -> bool:
    """Whether there is such a folder."""
    return _there_is(path, "isdir") if is_remote(path) else os.path.isdir(path)


def exists(path: str) -> bool:
    """Whether there is such a file or folder."""
    return _there_is(path, "exists") if is_remote(path) else os.path.exists(path)


def _there_is(url: str, question: str) -> bool:
    """What a file system's own `exists` or `isdir` says, unless it is an outage that says no."""

    def ask(system: Any, inner: str) -> bool:
        if getattr(system, question)(inner):
            return True
        there = system.info(inner)  # raises what the other keeps to itself
        return question == "exists" or there["type"] == "directory"

    try:
        return _remotely(url, ask)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(f"{url}: cannot be looked for ({reason(error)})") from error


def read_file(path: str, *, limit: int) -> bytes:
    """All bytes of a file.

    Args:
        path: Of the file.
        limit: Bytes that it may have.

    Raises:
        OSError: They can't be had, or are more.
    """
    if not is_remote(path):
        return patiently(path, lambda: _read_local(path, limit))
    data = read_range(path, 0, limit + 1)
    if len(data) > limit:
        raise too_large(path, limit)
    return data


def _read_local(path: str, limit: int) -> bytes:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise too_large(path, limit)
        # A file of /proc has no size either, and a read of it may fail each time, or never end.
        return file.readall() if size else b""


def read_range(path: str, start: int, size: int) -> bytes:
    """`size` bytes of a file from byte `start` on, fewer where it ends before.

    Raises:
        OSError: They can't be had, or `size` is negative, which would mean all there are.
    """
    if size < 0:
        raise OSError(errno.EINVAL, f"{size} bytes", path)

    def read_remote(system: Any, inner: str) -> bytes:
        try:
            return bytes(system.cat_file(inner, start=start, end=start + size))
        except FINAL:
            raise
        except Exception:
            # A range from the end on is refused, such as any of an empty file.
            end = system.info(inner).get("size")
            if end is None or start < end:
                raise
            return b""

    if is_remote(path):
        return _remotely(path, read_remote)

    def read_local() -> bytes:
        with open_regular(path) as file:
            file.seek(start)
            return file.read(size)

    return patiently(path, read_local)


def read_in(path: str, read: Callable[[BinaryIO], _T]) -> _T:
    """What `read` makes of a file that it seeks and reads in; it may have to start over.

    Raises:
        OSError: It can't be opened or read.
    """

    def read_remote(system: Any, inner: str) -> _T:
        with system.open(inner, "rb", **_IN_BLOCKS) as file:
            return read(cast(BinaryIO, file))

    if is_remote(path):
        return _remotely(path, read_remote)

    def read_local() -> _T:
        with open_regular(path) as raw:
            return read(cast(BinaryIO, raw))

    return patiently(path, read_local)


def _remotely(url: str, read: Callable[[Any, str], _T]) -> _T:
    """What `read` makes of the file system of a URL and the path in it."""

    def read_once() -> _T:
        with remote(url) as (system, inner):
            return read(system, inner)

    return patiently(url, read_once)


def fetch(url: str, target: str) -> None:
    """Copies a remote file to a local path.

    Raises:
        OSError: It can't be read, or the copy not be written.
    """
    _remotely(url, lambda system, inner: system.get_file(inner, target))


def remote_files(folder: str) -> list[str]:
    """Paths of all files below a remote folder, relative to it.

    Raises:
        OSError: It can't be listed.
    """

    def find(system: Any, inner: str) -> list[str]:
        root = inner.strip("/")
        return [path.strip("/")[len(root) :].lstrip("/") for path in system.find(inner)]

    return _remotely(folder, find)


def expand(pattern: str) -> list[str]:
    """The files that a path stands for.

    `{00..12}` stands for every number between, `{a,b}` for each part, as in a shell, and `*`, `?`
    and `[...]` for what exists.

    Returns:
        Paths, those of a `*` in order; what has none of these is given back as it is.

    Raises:
        OSError: A remote folder can't be listed.
        UserError: Braces stand for more than `MAX_FILES` paths.
    """
    patterns = list(itertools.islice(_braces(pattern), MAX_FILES + 1))
    if len(patterns) > MAX_FILES:
        raise UserError(f"{pattern}: its braces stand for more than {MAX_FILES:,} files")
    return [path for one in patterns for path in _matches(one)]


def _matches(pattern: str) -> list[str]:
    if not glob.has_magic(pattern) or exists(pattern):
        return [pattern]
    if not is_remote(pattern):
        return sorted(glob.glob(pattern, recursive=True))

    def match(system: Any, inner: str) -> list[str]:
        # What a file system's own paths lack, or have, before the first folder.
        start = pattern[: len(pattern) - len(inner.lstrip("/"))]
        return sorted(f"{start}{path.lstrip('/')}" for path in system.glob(inner))

    return _remotely(pattern, match)


def _braces(pattern: str) -> Iterator[str]:
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [_choices(part) if i % 2 else [part] for i, part in enumerate(parts)]
    return map("".join, itertools.product(*choices))


def _choices(text: str) -> list[str]:
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    if ends:
        first, last = ends.groups()
        if len(first) > _MAX_DIGITS or len(last) > _MAX_DIGITS:
            raise UserError(f"{{{text:.40}}}: numbers of more than {_MAX_DIGITS} digits")
        numbers = range(int(first), int(last) + 1)
        return [f"{i:0{len(first)}}" for i in numbers[: MAX_FILES + 1]]
    return text.split(",") if "," in text else [f"{{{text}}}"]
