"""A file that grows beside its final place, and moves there when it is whole."""

from __future__ import annotations

import os
import pathlib
from typing import BinaryIO

from must_jax.errors import UserError
from must_jax.local_files import open_to_write


class GrowingFile:
    """Bytes that are appended to `NAME.partial`.

    Attributes:
      path: the final place.
      partial: where the bytes are until then.
    """

    def __init__(self, path: pathlib.Path, *, size: int | None):
        """Starts, or goes on after the first `size` bytes, the rest being cut off.

        Raises:
          UserError: there are fewer.
          OSError: it can't be opened or written.
        """
        self.path = path
        self._size = size
        self.partial = path.with_name(f"{path.name}.partial")
        self._file: BinaryIO | None = None
        if size is None:
            self._file = open_to_write(self.partial, "wb")
        elif self.partial.exists() or not path.exists():
            self._file = open_to_write(self.partial, "r+b")
            if self._file.seek(0, os.SEEK_END) < size:
                raise UserError(f"{self.partial} is shorter than it was; remove it to start anew")
            self._file.seek(size)
            self._file.truncate()
        # Else it is whole: a kill came right after it had been moved.

    def append(self, data: bytes) -> None:
        """Adds bytes, which may be lost in a kill until `sync`."""
        if self._file is not None:
            self._file.write(data)

    def sync(self) -> int:
        """Brings all to the disk, and tells how many bytes there are."""
        if self._file is None:
            return self._size or 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def move(self) -> None:
        """Closes the file and moves it to its place."""
        self.close()
        if self.partial.exists():
            os.replace(self.partial, self.path)

    def remove(self) -> None:
        """Closes the file and removes it."""
        self.close()
        self.partial.unlink(missing_ok=True)
