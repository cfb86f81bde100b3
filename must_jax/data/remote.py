"""Remote file systems, those that fsspec knows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from must_jax.errors import UserError

# Of HTTP's errors of who asks, those that are about when: a timeout, too early, too many requests.
_BUSY = (408, 425, 429)


class NoFileSystemError(UserError):
    """A URL of an unknown kind, or of one whose library isn't installed or doesn't take it."""


def is_remote(path: str) -> bool:
    """Whether a path is a URL."""
    return "://" in path


@contextlib.contextmanager
def remote(path: str) -> Iterator[tuple[Any, str]]:
    """The file system of a URL, and the path in it; its own kinds of errors become OSError.

    Raises:
        NoFileSystemError: There is none.
    """
    import fsspec
    from fsspec.registry import known_implementations

    protocol = path.partition("://")[0]
    try:
        system, inner = fsspec.core.url_to_fs(path)
    except ImportError as error:
        known = known_implementations.get(protocol, {}).get("class", "fsspec")
        package = known.partition(".")[0]
        needs = str(error) if package == "fsspec" else f"needs {package}; pip install {package}"
        raise NoFileSystemError(f"{path}: {protocol}:// {needs}") from error
    except Exception as error:
        raise NoFileSystemError(f"{path} can't be opened: {error}") from error
    try:
        yield system, inner
    except UserError:
        raise
    # No common kind: refused credentials alone have one for every cloud.
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        if _is_refusal(error):
            raise PermissionError(told) from error
        if isinstance(error, OSError):
            raise
        raise OSError(told) from error


def _is_refusal(error: Exception) -> bool:
    """Whether more than patience is needed: rights (gcsfs says "Forbidden"), or who asks."""
    status = getattr(error, "code", getattr(error, "status", None))
    return (
        (isinstance(status, int) and 400 <= status < 500 and status not in _BUSY)
        or str(error).startswith("Forbidden")
        or type(error).__name__.endswith("CredentialsError")
    )
