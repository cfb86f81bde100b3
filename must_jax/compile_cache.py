"""Compiled programs are kept in the user's cache folder, for the next start."""

import contextlib
import os
import pathlib
import tempfile
import uuid

import jax

from must_jax import distributed

VARIABLE = "JAX_COMPILATION_CACHE_DIR"
MAX_BYTES = 4 * 2**30
LIMIT = "JAX_COMPILATION_CACHE_MAX_SIZE"
LEAST_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def default_folder() -> pathlib.Path:
    """Where compiled programs are kept: `must_jax/xla` in the user's cache folder.

    Raises:
      RuntimeError: the user has no home.
    """
    told = os.environ.get("XDG_CACHE_HOME", "")
    caches = pathlib.Path(told) if os.path.isabs(told) else pathlib.Path.home() / ".cache"
    return caches / "must_jax" / "xla"


def use_compile_cache() -> None:
    """Has JAX keep what it compiles from now on, unless its own variable says where, even nowhere.

    What was not used for longest is deleted first, so that the folder has no more than `MAX_BYTES`,
    unless JAX's variable sets a limit: JAX looks at all programs whenever it keeps one more, which
    takes longer than compiling a small one, of which there are thousands where jit is disabled.

    Without a folder that can be written, nothing is kept. Of several processes, JAX has the first
    one write; where the others don't see its folder, nothing is kept either: on GPUs, processes
    that compile would wait for one that doesn't. All processes must call it.
    """
    if VARIABLE in os.environ or jax.config.values["jax_compilation_cache_dir"]:
        return
    folder = _writable_folder()
    if distributed.is_running():
        folder = _shared(folder)
    if folder is None:
        return
    if LIMIT not in os.environ and jax.process_index() == 0:
        make_room(folder, MAX_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if LEAST_SECONDS not in os.environ:
        # Some thirty small programs take half a second of a start together.
        jax.config.update(LEAST_SECONDS.lower(), 0.0)


def make_room(folder: pathlib.Path, max_bytes: int) -> None:
    """Deletes the files in `folder` that were not used for longest, until `max_bytes` are left."""
    files = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another run has deleted it
            if path.is_file():
                told = path.stat()
                files.append((max(told.st_atime, told.st_mtime), told.st_size, path))
    excess = sum(size for _, size, _ in files) - max_bytes
    for _, size, path in sorted(files):
        if excess <= 0:
            return
        with contextlib.suppress(OSError):
            path.unlink()
            excess -= size


def _writable_folder() -> pathlib.Path | None:
    try:
        folder = default_folder()
        # Programs in it are run: it is nobody else's to write.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):
        return None


def _shared(folder: pathlib.Path | None) -> pathlib.Path | None:
    """The folder if it is the first process's on every process."""
    mark = distributed.from_first(f"mark-{uuid.uuid4().hex}")
    first = jax.process_index() == 0
    if first and folder:
        (folder / mark).touch()
    distributed.from_first(None)  # it is there now
    seen = distributed.gather(bool(folder) and (folder / mark).exists())
    if first and folder:
        (folder / mark).unlink()
    return folder if all(seen) else None
