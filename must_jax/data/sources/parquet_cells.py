"""The cells of a Parquet file, of which a few bytes may stand for gigabytes."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Sequence
from typing import Any

from must_jax.local_files import machine_memory

_ROWS = 1024  # at a time
_LONG_ROWS = 16  # at a time, where each may be long
# Bytes of cells that a byte of the file may stand for, and what is allowed to any file. A million
# paths of 180 letters that differ in a number alone, delta-encoded and packed, come to 3,300.
_MAX_GROWTH, _ALLOWED = 5000, 2**24
_MAX_SHARE = 1 / 4  # of the machine's memory
_MIN_ROW = 8  # bytes, of a row's references
_CELL = 48  # bytes that Python's string or number takes beside its letters


def parquet_cells(
    data: bytes, columns: Sequence[str], *, texts: Sequence[str]
) -> dict[str, list[Any]]:
    """The cells of some columns, as Python has them.

    Args:
        data: The file.
        columns: Their names, each of which is there once.
        texts: Those of them that are of text.

    Raises:
        ValueError: They are out of proportion to the file, or a text to a path.
        pyarrow.ArrowException, OSError: The file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    limit = min(_MAX_GROWTH * len(data) + _ALLOWED, int(_MAX_SHARE * machine_memory()))
    file = pq.ParquetFile(pa.BufferReader(data))
    size = _MIN_ROW * file.metadata.num_rows
    if size > limit:
        raise ValueError(f"{file.metadata.num_rows} rows in {len(data)} bytes")
    # A text that is repeated is stored once, and read as often as it is meant.
    stored = pq.ParquetFile(pa.BufferReader(data), read_dictionary=list(texts))
    cells: dict[str, list[Any]] = {name: [] for name in columns}
    for group in range(file.metadata.num_row_groups):
        rows = _ROWS
        try:
            # One row, if there is any, brings all texts of its group that are stored once.
            first = stored.iter_batches(batch_size=1, row_groups=[group], columns=list(texts))
            for array in (array for row in itertools.islice(first, 1) for array in row.columns):
                _check_lengths(array.dictionary)
        except OSError:  # of a delta encoding, where a text is what it adds to the one before
            rows = _LONG_ROWS
        for batch in file.iter_batches(rows, row_groups=[group], columns=list(columns)):
            for name, values in cells.items():
                array = batch.column(name)
                if pa.types.is_dictionary(array.type):
                    array = array.dictionary_decode()
                if name in texts:
                    array = array.cast(pa.large_string())  # views of a text may share it
                    _check_lengths(array)
                size += array.nbytes + _CELL * len(array)
                if size > limit:
                    raise ValueError(f"{len(data)} bytes stand for more than {limit >> 20} MiB")
                values += array.to_pylist()
    return cells


def _check_lengths(texts: Any) -> None:
    import pyarrow.compute as pc

    longest = pc.max(pc.binary_length(texts)).as_py() or 0
    if longest > csv.field_size_limit():
        raise ValueError(f"a cell of {longest} bytes; {csv.field_size_limit()} are the most")
