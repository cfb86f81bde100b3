"""How much zstd frames make, told by the headers of their blocks (RFC 8878, section 3.1.1)."""

import mmap
import re
from collections.abc import Iterator
from pathlib import Path

from must_jax.local_files import open_regular

_MAGIC = re.compile(re.escape(bytes.fromhex("28b52ffd")))
_RUN, _COMPRESSED, _RESERVED = 1, 2, 3
_MAX_BLOCK = 2**17  # bytes that one makes
# What an empty one is taken for: many frames may go on in the same ones, each of which is walked.
_MIN_BLOCK = 2**12


def unpacked_bytes(path: Path, *, limit: int) -> int:
    """The most bytes that all zstd frames in a file can make, wherever in it they begin.

    What only looks like a frame ends at the first block that is none, as its unpacking would. The
    count ends where it exceeds `limit`.

    Raises:
      OSError: the file can't be read, or is no regular one.
    """
    with open_regular(path) as file:
        if not file.seek(0, 2):
            return 0
        # Closed with the last search in it, no sooner.
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        total = 0
        for found in _MAGIC.finditer(content):
            for size in _blocks(content, found.end()):
                total += max(size, _MIN_BLOCK)
                if total > limit:
                    return total
        return total


def _blocks(content: mmap.mmap, start: int) -> Iterator[int]:
    """The most bytes that each block of a frame makes; `start` is behind the magic number."""
    at = start + _header_bytes(content[start : start + 1])
    is_last = 0
    while not is_last and at + 3 <= len(content):
        header = int.from_bytes(content[at : at + 3], "little")
        is_last, kind, size = header & 1, header >> 1 & 3, header >> 3
        if size > _MAX_BLOCK or kind == _RESERVED:
            return
        yield _MAX_BLOCK if kind == _COMPRESSED else size
        at += 3 + (1 if kind == _RUN else size)


def _header_bytes(descriptor: bytes) -> int:
    bits = int.from_bytes(descriptor, "little")
    is_single = bits >> 5 & 1
    window = 1 - is_single
    dictionary = (0, 1, 2, 4)[bits & 3]
    content_size = (is_single, 2, 4, 8)[bits >> 6]
    return 1 + window + dictionary + content_size
