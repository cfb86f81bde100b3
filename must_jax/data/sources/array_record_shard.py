"""Records of ArrayRecord files by index, none of which takes more memory than an image may."""

from __future__ import annotations

import bisect
import contextlib
import io
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from must_jax.data.sources.array_record_index import ArrayRecordIndex
from must_jax.local_files import open_regular

# Random access: nothing is read ahead, and little at a time.
_READER: dict[str, Any] = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 2**15}


class _Opened(NamedTuple):
    file: io.FileIO  # closed with the last reference to it
    chunks: ArrayRecordIndex
    reader: Any


class ArrayRecordShard:
    """One file, read by many threads at once; pickled, it is its path and opened again.

    It is opened when it is first used, and stays so: by the library and, for what is looked at
    before the library decodes a record, once more.
    """

    def __init__(self, path: str):
        """`path` is a local one."""
        self._path = path
        self._opened: _Opened | None = None

    def __len__(self) -> int:
        """Number of records.

        Raises:
            OSError: The file can't be opened.
            ValueError, RuntimeError: It is damaged, cut short or no ArrayRecord file.
        """
        return self._open().chunks.count

    def __getitem__(self, record: int) -> bytes:
        """A record.

        Raises:
            OSError: It can't be read.
            ValueError, RuntimeError: It, or the file, is damaged, or it is too large.
        """
        opened = self._opened or self._open()
        if not 0 <= record < opened.chunks.count:
            raise ValueError(f"record {record} of a file of {opened.chunks.count}")
        opened.chunks.check(record)
        return opened.reader.read([record])[0]

    def _open(self) -> _Opened:
        from array_record.python.array_record_module import ArrayRecordReader

        if self._opened is None:
            # Where several threads come here at once, the last one's stays.
            with contextlib.ExitStack() as on_failure:
                file = on_failure.enter_context(open_regular(self._path))
                chunks = ArrayRecordIndex(file.fileno())
                reader = ArrayRecordReader(self._path, **_READER)
                if not reader.ok():
                    reader.close()  # which raises what is wrong
                on_failure.pop_all()
            self._opened = _Opened(file, chunks, reader)
        return self._opened

    def __getstate__(self) -> str:
        return self._path

    def __setstate__(self, path: str) -> None:
        self.__init__(path)  # type: ignore[misc]


class ArrayRecordParts:
    """Consecutive records of each of some files, one after another."""

    def __init__(self, parts: Sequence[tuple[str, int, int]]):
        """`parts` are files, the records to pass over and the records to take."""
        self._parts = [(ArrayRecordShard(path), skip) for path, skip, _ in parts]
        self._ends = list(itertools.accumulate(take for _, _, take in parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, record: int) -> bytes:
        """A record; raises what `ArrayRecordShard` does."""
        part = bisect.bisect_right(self._ends, record)
        shard, skip = self._parts[part]
        return shard[record - (self._ends[part - 1] if part else 0) + skip]
