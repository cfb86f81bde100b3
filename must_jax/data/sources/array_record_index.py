"""Where the chunks of an ArrayRecord file lie, which its footer says.

Of the format, https://github.com/google/array_record/blob/main/cpp/layout.proto. It is read as
`array_record` writes it and no other way, lest the library read chunks that are not looked at here.
"""

from __future__ import annotations

import os
from array import array

import numpy as np

from must_jax.data.sources.riegeli_chunk import (
    HEADER_BYTES,
    ChunkHeader,
    read_header,
    read_records,
    snappy_size,
    varints,
)
from must_jax.data.sources.source import MAX_IMAGE

_POSTSCRIPT = 2**16  # bytes at the end
_MAGIC = 0x71930E704FDAE05E
_INTEGERS = (1 << 3, 2 << 3, 3 << 3)  # tags of fields, here and below
_METADATA, _OPTIONS = 1 << 3 | 2, 4 << 3 | 2  # of bytes
_ENTRY = 33  # bytes at most: three fields of up to ten bytes
_ENTRIES = 2**16  # at a time


class ArrayRecordIndex:
    """The chunks of a file: groups of records that are compressed, and decoded, together.

    Attributes:
        count: Number of records.
    """

    def __init__(self, file: int):
        """Reads the footer of a file, given by its descriptor.

        Raises:
            ValueError: It is damaged, out of proportion to the file, or of another format.
            OSError: It can't be read.
        """
        self._file = file
        size = os.fstat(file).st_size
        footer = _footer_start(file, size)
        header = read_header(file, footer)
        # All of it is decoded at once. A chunk is no smaller than its header, nor, of the format,
        # than its number of records.
        _refuse_transposed(header)
        limit = _ENTRY * header.records + _POSTSCRIPT
        stored = size - _POSTSCRIPT - footer
        if (
            header.records > 1 + footer // HEADER_BYTES
            or header.decoded_size > limit
            or max(header.data_size, stored) > 2 * limit + 2 * _POSTSCRIPT
        ):
            raise ValueError(
                f"damaged; a footer of {header.records} entries that decodes to "
                f"{header.decoded_size} bytes, after {footer} bytes of records"
            )
        ends, entries = read_records(file, footer, header)
        if not len(ends):
            raise ValueError("damaged; its footer is empty")
        chunks, self.count = _metadata(entries[: ends[0]])
        starts, counts = _chunks(ends, entries)
        starts = np.append(starts, footer)
        self._group = int(counts[0]) if len(counts) else 1
        if (
            chunks != len(counts)
            or self.count != counts.sum()
            or (counts[:-1] != self._group).any()
            or (counts < 1).any()
            or (counts[-1:] > self._group).any()
            or (counts > np.diff(starts)).any()
        ):
            raise ValueError("damaged; the chunks in its footer overlap, or don't add up")
        self._starts = array("q", starts.tobytes())

    def check(self, record: int) -> None:
        """Refuses a record that the library would decode more than `MAX_IMAGE` bytes for.

        Raises:
            ValueError: So it is.
            OSError: It can't be read.
        """
        chunk = record // self._group
        start, end = self._starts[chunk], self._starts[chunk + 1]
        header = read_header(self._file, start)
        _refuse_transposed(header)
        # The library holds a number for each record of the chunk, and all that is stored of it.
        size, stored = header.decoded_size + 8 * header.records, end - start
        if header.snappy and header.data_size <= stored <= 2 * MAX_IMAGE:
            size = max(size, snappy_size(self._file, start, header))
        if size > MAX_IMAGE or stored > 2 * MAX_IMAGE:
            raise ValueError(
                f"its chunk (records: {header.records}) takes {size} bytes, decoded from {stored}; "
                f"{MAX_IMAGE} are the most"
                + ("; write shards with group_size:1" if header.records > 1 else "")
            )


def _refuse_transposed(header: ChunkHeader) -> None:
    """Ten bytes of a transposed chunk may make the library allocate a hundred gigabytes."""
    if header.transposed:
        raise ValueError("its chunk is transposed; write shards without the option transpose")


def _footer_start(file: int, size: int) -> int:
    start = size - _POSTSCRIPT
    if start < 0:
        raise ValueError("no ArrayRecord file, or cut short")
    header = read_header(file, start)
    _refuse_transposed(header)
    if (
        max(header.data_size, header.records, header.decoded_size) > _POSTSCRIPT
        or not header.records
    ):
        raise ValueError("no ArrayRecord file, or cut short")
    ends, records = read_records(file, start, header)
    fields, _ = varints(records[: ends[0]])
    if len(fields) != 4 or fields[[0, 2, 3]].tolist() != [*_INTEGERS[:2], _MAGIC]:
        raise ValueError("no ArrayRecord file, or cut short")
    footer = int(fields[1])
    if footer > start:
        raise ValueError(f"damaged; a footer at byte {footer} of {size}")
    return footer


def _metadata(record: bytes) -> tuple[int, int]:
    """The numbers of chunks and of records."""
    # Five fields, or four of an old version; the last of five is text, past its length.
    codes = np.frombuffer(record, np.uint8)
    fields, ends = varints(record[: np.flatnonzero(codes < 128)[:10].max(initial=-1) + 1])
    numbers = fields.tolist()
    if (
        len(numbers) not in (8, 10)
        or numbers[::2] != [_METADATA, *_INTEGERS, _OPTIONS][: len(numbers) // 2]
        or numbers[1] + int(ends[1]) != len(record)
        or sum(numbers[9:]) + int(ends[-1]) != len(record)
    ):
        raise ValueError("damaged; its footer says nothing of chunks")
    return numbers[5], numbers[7]


def _chunks(ends: np.ndarray, entries: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Where each chunk starts, and its number of records."""
    starts = [np.zeros(0, np.int64)]
    counts = [np.zeros(0, np.int64)]
    for first in range(1, len(ends), _ENTRIES):
        begin, within = ends[first - 1], ends[first : first + _ENTRIES]
        fields, fields_end = varints(entries[begin : within[-1]])
        if not np.array_equal(fields_end[5::6] + begin, within) or len(fields) != 6 * len(within):
            raise ValueError("damaged; its footer has entries of other fields")
        table = fields.reshape(-1, 6)
        if (table[:, ::2] != _INTEGERS).any():
            raise ValueError("damaged; its footer has entries of other fields")
        starts.append(table[:, 1])
        counts.append(table[:, 5])
    return np.concatenate(starts), np.concatenate(counts)
