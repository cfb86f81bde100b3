"""Compiled programs are kept in the user's cache folder, for the next start."""

import os
import pathlib
import tempfile
import uuid

import jax

from must_jax import distributed

VARIABLE = "JAX_COMPILATION_CACHE_DIR"
MAX_BYTES = 4 * 2**30  # the programs that were not used for longest are deleted beyond it
# JAX's own settings, which a user may have made.
DEFAULTS = {
    "jax_compilation_cache_max_size": MAX_BYTES,
    # Some thirty small programs take half a second of a start together.
    "jax_persistent_cache_min_compile_time_secs": 0.0,
}


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
    jax.config.update("jax_compilation_cache_dir", str(folder))
    for name, value in DEFAULTS.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)


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
