"""How many files the process may hold open."""

from __future__ import annotations

import resource

from must_jax.errors import UserError

_OTHERS = 256  # files that everything else holds open
_OF_A_SHARD = 2  # the library's, and that in which a record is looked at before


def allow_open_files(shards: int, *, path: str) -> None:
    """Raises the limit by what shards take, which stay open; worker processes inherit it.

    The ArrayRecord library keeps every shard open that it has read from, and 1,024 files in all is
    a common limit.

    Raises:
        UserError: The system doesn't allow as many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    count = _OF_A_SHARD * shards
    wanted = soft + count
    if hard != resource.RLIM_INFINITY and wanted > hard:
        if count + _OTHERS > hard:
            raise UserError(
                f"{path}: {shards} shards stay open, and this system allows {hard} open files; "
                "allow more (ulimit -Hn), or write fewer shards"
            )
        wanted = hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
