"""How many files the process may hold open."""

from __future__ import annotations

import resource

from must_jax.errors import UserError

_OTHERS = 256  # files that everything else holds open


def allow_open_files(count: int, *, path: str) -> None:
    """Raises the limit by `count` files, which stay open from now on; worker processes inherit it.

    The ArrayRecord library keeps every shard open that it has read from, and 1,024 files in all is
    a common limit.

    Raises:
        UserError: The system doesn't allow as many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    wanted = soft + count
    if hard != resource.RLIM_INFINITY and wanted > hard:
        if count + _OTHERS > hard:
            raise UserError(
                f"{path}: {count} shards stay open, and this system allows {hard} open files; "
                "allow more (ulimit -Hn), or write fewer shards"
            )
        wanted = hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
