"""The records in the Parquet files of a TFDS data set."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np

from must_jax.errors import UserError


def check_rows(expected: dict[str, int]) -> None:
    """Refuses a file that has lost records: TFDS 4.9.10's writer keeps 100 of the first 200."""
    import pyarrow.parquet as pq

    for file, count in expected.items():
        try:
            found = pq.read_metadata(file).num_rows
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: not a Parquet file that can be read ({error})") from error
        if found != count:
            raise UserError(
                f"{file}: {found} records, where TFDS wrote {count}; its Parquet writer loses some "
                "in version 4.9.10: prepare the data set again with --file_format=array_record"
            )


class ParquetRows:
    """Records in TFDS's Parquet files, which have them whole in one column.

    They are held in memory, in each process of its own: a Parquet file is read by groups of rows.
    TFDS's own reader does so too, and takes no notice of parts of splits.
    """

    def __init__(self, parts: list[tuple[str, int, int]]):
        """`parts` are files, the rows to pass over and the rows to take."""
        self._parts = parts
        self._ends = list(itertools.accumulate(take for _, _, take in parts))
        self._tables: list[Any] | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, record: int) -> bytes:
        import pyarrow.parquet as pq

        with self._lock:
            if self._tables is None:
                self._tables = [
                    pq.read_table(path).column(0).slice(skip, take)
                    for path, skip, take in self._parts
                ]
        part = int(np.searchsorted(self._ends, record, side="right"))
        first = self._ends[part - 1] if part else 0
        return self._tables[part][record - first].as_py()

    def __getstate__(self) -> list[tuple[str, int, int]]:
        return self._parts

    def __setstate__(self, parts: list[tuple[str, int, int]]) -> None:
        self.__init__(parts)  # type: ignore[misc]
