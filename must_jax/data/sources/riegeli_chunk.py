"""Riegeli chunks, which ArrayRecord files are made of: what one says of itself, and its records.

Of the format, https://github.com/google/riegeli/blob/master/doc/riegeli_records_file_format.md.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

import numpy as np

HEADER_BYTES = 40
_BLOCK, _BLOCK_HEADER = 2**16, 24
# Past the hashes, which the library compares, and with what starts a chunk of records.
_HEADER = struct.Struct("<8xQ8xQQB")
_CODECS = {b"b": "brotli", b"z": "zstd", b"s": "snappy"}


class ChunkHeader(NamedTuple):
    """What stands before a chunk, and its first byte.

    Attributes:
        data_size: Bytes of the chunk as it is stored, without the header.
        transposed: The records are torn into columns, as no more than a message can be.
        records: Their number.
        decoded_size: Bytes of all records together. No more are ever decoded, whatever a
            compressed stream holds, unless by Snappy.
        snappy: They are compressed with it.
    """

    data_size: int
    transposed: bool
    records: int
    decoded_size: int
    snappy: bool


def read_header(file: int, start: int) -> ChunkHeader:
    """The header of the chunk at byte `start` of a file, given by its descriptor.

    Raises:
        ValueError: No chunk of records starts there.
        OSError: It can't be read.
    """
    inside = start % _BLOCK
    if 0 < inside <= _BLOCK - _HEADER.size:  # no block's header within, as with nearly all chunks
        header = os.pread(file, _HEADER.size, start)
    else:
        header = read_stored(file, start, _HEADER.size)
    if len(header) < _HEADER.size:
        raise ValueError("cut short")
    data_size, kind, decoded_size, codec = _HEADER.unpack(header)
    if kind & 255 not in b"rt":
        raise ValueError(f"damaged; no chunk of records at byte {start}")
    return ChunkHeader(data_size, kind & 255 == b"t"[0], kind >> 8, decoded_size, codec == b"s"[0])


def read_stored(file: int, start: int, size: int) -> bytes:
    """`size` bytes of chunks from byte `start` on, without the headers of blocks in between.

    Raises:
        OSError: They can't be read.
    """
    blocks = 2 + size // (_BLOCK - _BLOCK_HEADER)
    raw = os.pread(file, size + blocks * _BLOCK_HEADER, start)
    first = -start % _BLOCK
    parts = [raw[:first]]
    parts += [raw[at + _BLOCK_HEADER : at + _BLOCK] for at in range(first, len(raw), _BLOCK)]
    return b"".join(parts)[:size]


def read_records(file: int, start: int, header: ChunkHeader) -> tuple[np.ndarray, bytes]:
    """The records of a chunk that isn't transposed, for one that is known to be of bounded size.

    Returns:
        int64 (number of records,), where each of them ends; the records, one after another.

    Raises:
        ValueError: It is damaged.
        OSError: It can't be read.
    """
    codec, sizes, records = _streams(file, start, header)
    sizes = _decompressed(sizes, codec, 10 * header.records)
    records = _decompressed(records, codec, header.decoded_size)
    lengths, _ = varints(sizes)
    ends = np.cumsum(lengths)
    if (
        len(ends) != header.records
        or (ends < lengths).any()  # a sum beyond 63 bits is negative
        or {len(records)} != {header.decoded_size, *ends[-1:].tolist()}
    ):
        raise ValueError("damaged; its records are not of the sizes that they should be")
    return ends, records


def snappy_size(file: int, start: int, header: ChunkHeader) -> int:
    """The bytes that Snappy will decode of a chunk; it does so at once, whatever the header says.

    Raises:
        ValueError: It is damaged.
        OSError: It can't be read.
    """
    _, *streams = _streams(file, start, header)
    # Riegeli's number, and then Snappy's own, which alone it goes by.
    return sum(_varint(stream, _varint(stream, 0)[1])[0] for stream in streams)


def varints(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Integers of 63 bits in the variable-length code of Protocol Buffers.

    Returns:
        int64 (number of integers,), the integers; int64 (number of integers,), where each ends.

    Raises:
        ValueError: The data is something else.
    """
    codes = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(codes < 128) + 1
    if (ends[-1] if len(ends) else 0) != len(codes):
        raise ValueError("damaged; an integer is cut short")
    starts = np.concatenate([[0], ends[:-1]])
    lengths = ends - starts[: len(ends)]
    longest = int(lengths.max(initial=0))
    if longest > 9:
        raise ValueError("damaged; an integer is too large")
    values = np.zeros(len(ends), np.int64)
    for digit in range(longest):
        (having,) = np.nonzero(lengths > digit)
        digits = (codes[starts[having] + digit] & 127).astype(np.int64)
        values[having] |= digits << (7 * digit)
    return values, ends


def _streams(file: int, start: int, header: ChunkHeader) -> tuple[bytes, bytes, bytes]:
    """What a chunk is compressed with, the sizes of its records, and the records."""
    stored = read_stored(file, start, HEADER_BYTES + header.data_size)[HEADER_BYTES:]
    size, first = _varint(stored, 1)
    return stored[:1], stored[first : first + size], stored[first + size :]


def _varint(data: bytes, start: int) -> tuple[int, int]:
    """One integer, and where it ends."""
    integer = data[start : start + 10]
    length = next((at for at, code in enumerate(integer, 1) if code < 128), 0)
    values, _ = varints(integer[:length])
    if not len(values):
        raise ValueError("damaged; an integer is cut short")
    return int(values[0]), start + length


def _decompressed(stream: bytes, codec: bytes, limit: int) -> bytes:
    """A stream of a chunk: as it is, or compressed, with its size before it."""
    if codec == b"\0":
        return stream
    if codec not in _CODECS:
        raise ValueError("damaged; an unknown compression")
    import pyarrow as pa

    size, first = _varint(stream, 0)
    if size > limit:
        raise ValueError(f"damaged; {size} bytes, where {limit} are the most")
    try:
        return pa.decompress(stream[first:], size, _CODECS[codec], asbytes=True)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"damaged; cannot be decompressed ({error})") from error
