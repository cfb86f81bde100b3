"""Millions of strings in little memory."""

from __future__ import annotations

import array
from collections.abc import Iterable, Iterator

import numpy as np


class Strings:
    """An unchanging list of strings, kept as one block of bytes.

    A list of `str` takes some 50 bytes a string beside its letters, and each worker process that
    is handed one copies them one by one.
    """

    def __init__(self, strings: Iterable[str]):
        """Packs them. Letters that a file system could not decode are kept."""
        self._block, ends = bytearray(), array.array("q")
        for string in strings:
            self._block += string.encode("utf-8", "surrogateescape")
            ends.append(len(self._block))
        self._ends = np.array(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return self._block[start : self._ends[index]].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))
