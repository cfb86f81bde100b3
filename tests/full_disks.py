"""Disks that fill, and what a power cut leaves on them."""

import contextlib
import os
import resource
import stat


@contextlib.contextmanager
def files_up_to(size):
    """Every write beyond it fails, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


class Synced:
    """Stands for `os.fsync`, and remembers what it brought to the disk."""

    def __init__(self):
        self._sync = os.fsync
        self._found = {}

    def __call__(self, descriptor):
        self._sync(descriptor)
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            with open(f"/proc/self/fd/{descriptor}", "rb") as file:
                self._found[status.st_ino] = file.read()

    def left_of(self, path):
        """What a power cut leaves of a file at the least."""
        return self._found.get(path.stat().st_ino)
