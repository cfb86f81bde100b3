"""Copies of remote files, for libraries that read nothing but local ones."""

from __future__ import annotations

import os
import tempfile

from must_jax.data import files
from must_jax.data.patience import tell_seldom
from must_jax.data.remote import remote
from must_jax.errors import UserError, reason
from must_jax.local_files import open_regular

_VERSION = ".version"  # beside a copy: what the file system tells a file's state by


def place_of(url: str) -> str:
    """Where the copy of a URL lies, whether it is there or not: below `~/.cache/must_jax`.

    Raises:
        UserError: A part of it would lead out of there.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    protocol, _, path = url.partition("://")
    parts = [protocol, *path.strip("/").split("/")]
    if {"", ".", ".."} & set(parts) or "\0" in url:
        raise UserError(
            f"{url}: of a name with '.', '..' or nothing between slashes, no copy is made"
        )
    return os.path.join(cache, "must_jax", *parts)


def local_copy(path: str) -> str:
    """A local file as it is; of a URL a copy, made unless there is one of the file as it is now.

    A copy is there whole or not at all, however many processes make it.

    Raises:
        UserError: The file can't be read, or the copy not be written.
    """
    if not files.is_remote(path):
        _check_regular(path)
        return path
    place = place_of(path)
    try:
        with remote(path) as (system, inner):
            version = str(system.ukey(inner))
            if os.path.exists(place) and _version_of(place) == version:
                return place
            tell_seldom("copy", f"{path}: copied to {place} first, as are all its neighbours")
            os.makedirs(os.path.dirname(place), exist_ok=True)
            with tempfile.TemporaryDirectory(dir=os.path.dirname(place)) as unfinished:
                copy = os.path.join(unfinished, os.path.basename(place))
                files.fetch(path, copy)
                with open(f"{copy}{_VERSION}", "w", encoding="utf-8") as file:
                    file.write(version)
                os.replace(copy, place)
                os.replace(f"{copy}{_VERSION}", f"{place}{_VERSION}")
    except OSError as error:
        raise UserError(f"{path}: cannot be copied to {place} ({reason(error)})") from error
    return place


def _check_regular(path: str) -> None:
    """The libraries would wait for ever at a pipe; what is missing, they tell better."""
    try:
        open_regular(path).close()
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from error


def _version_of(place: str) -> str:
    try:
        with open(f"{place}{_VERSION}", encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""
