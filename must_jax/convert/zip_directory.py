"""The directory of a zip file, which Python's reader makes objects of before it tells anything."""

import io
import os
import zipfile

from must_jax.errors import UserError
from must_jax.local_files import open_regular

MAX_ENTRIES = 2**16
_MAX_BYTES = MAX_ENTRIES * 2**8
_ENTRY = b"PK\x01\x02"  # begins each


def check_directory(path: str | os.PathLike[str]) -> None:
    """Refuses a zip file of too many entries. What they hold is not looked at.

    Raises:
      OSError: the file can't be read.
      zipfile.BadZipFile, ValueError: it is no zip file, or damaged.
      UserError: more than `MAX_ENTRIES`, or names of as many.
    """
    with _Watched(open_regular(path)) as file, zipfile.ZipFile(file):
        pass


class _Watched(io.BufferedReader):
    """A file that what opens an archive reads no large directory of."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads as files do.

        Raises:
          UserError: it would be a directory that is too large.
        """
        # The directory is read at once. How long it is, and of how many entries, stands in records
        # of which a forger chooses what each says; this is what the reader goes by.
        if size is None or size <= _MAX_BYTES:
            data = super().read(size)
            if data.count(_ENTRY) <= MAX_ENTRIES:
                return data
        raise UserError(f"{self.name}: more than {MAX_ENTRIES} entries in this archive")
