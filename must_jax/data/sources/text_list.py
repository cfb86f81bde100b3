"""The rows of CSV and TSV lists, of which there may be millions."""

from __future__ import annotations

import array
import csv
import dataclasses
import io
import itertools
import sys
from collections.abc import Iterator, Sequence

from must_jax.data.sources.fields import IMAGE_FIELDS, LABEL_FIELDS, find_field, no_image_field
from must_jax.data.sources.strings import Strings
from must_jax.errors import UserError
from must_jax.local_files import machine_memory

SEPARATORS = (",", ";", "\t")
MAX_SHARE = 1 / 4  # of the machine's memory, that a list may take
_MAX_ROW = 2**20  # letters, in all of its cells
# Bytes that are taken, beside the file and its paths: by a row; by each label that is another, with
# what it is looked up in, and this many times its letters.
_ROW_BYTES = 48
_LABEL_BYTES, _LABEL_COPIES = 250, 2


@dataclasses.dataclass(frozen=True)
class Columns:
    """What a list says.

    Attributes:
        paths: One a record, as written.
        labels: One a record, None where the cell is empty; None without a column of labels.
        rows: One a record: its line in the file, or its row in the table, counted from 1.
    """

    paths: Strings
    labels: Sequence[str | int | None] | None
    rows: Sequence[int]


def read_text_list(data: bytes, *, path: str, image_field: str, label_field: str) -> Columns:
    """What a CSV or TSV file says.

    Args:
        data: The file.
        path: What to call it in messages; its ending tells the separator, or the first line does.
        image_field: Name of the column of paths; empty for a usual one.
        label_field: Name of the column of labels; empty for a usual one.

    Raises:
        UserError: It is no UTF-8, ill-formed, without a column of paths, or would take more than
            `MAX_SHARE` of the memory.
    """
    room = _room(data, path=path)
    lines = _Lines(data)
    try:
        separator = "\t" if path.lower().endswith(".tsv") else _separator(_Lines(data))
        rows = _rows(lines, separator)
        row, first = next(rows, (0, []))
        if not first:
            return Columns(Strings([]), None, [])
        header = [cell.strip() for cell in first]
        label_name = find_field(header, named=label_field, usual=LABEL_FIELDS)
        image_name = find_field(header, named=image_field, usual=IMAGE_FIELDS)
        if image_name is None:
            if len(header) > 1 or image_field:
                raise no_image_field(path, header, named=image_field, what="column of row 1")
            # One column that says nothing of itself: paths, from the first row on.
            rows = itertools.chain([(row, first)], rows)
        label = None if label_name is None else header.index(label_name)
        image = 0 if image_name is None else header.index(image_name)
        return _collect(rows, header, image=image, label=label, path=path, room=room)
    except csv.Error as error:
        raise UserError(f"{path}, row {max(lines.number, 1)}: {error}") from error
    except UnicodeDecodeError as error:
        line = _undecodable_line(data)
        raise UserError(f"{path}, row {line}: not UTF-8; save the list in that encoding") from error


class _Lines:
    """The lines of a file, decoded one by one, for a CSV reader that may ask for all of them.

    Attributes:
        number: Of the last one, counted from 1.
        letters: In all since somebody set it to 0, at the start of a row.
    """

    def __init__(self, data: bytes):
        self._file = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="")
        self.number = self.letters = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._file.readline(_MAX_ROW + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self.letters += len(line)
        if self.letters > _MAX_ROW:
            raise csv.Error(f"more than {_MAX_ROW:,} letters")
        return line


def _rows(lines: _Lines, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The cells of the rows that have any, and the number of each one's last line."""
    for cells in csv.reader(lines, delimiter=separator, strict=True):
        lines.letters = 0
        if any(cell.strip() for cell in cells):
            yield lines.number, cells


def _collect(
    rows: Iterator[tuple[int, list[str]]],
    header: Sequence[str],
    *,
    image: int,
    label: int | None,
    path: str,
    room: float,
) -> Columns:
    """Takes the columns `image` and `label` of all rows, in `room` bytes beside what each takes."""
    numbers = array.array("q")
    labels: list[str | None] = []
    known: dict[str, str] = {}  # of millions of labels, a few differ

    def paths() -> Iterator[str]:
        nonlocal room
        for row, cells in rows:
            if len(cells) != len(header):
                raise UserError(
                    f"{path}, row {row}: {len(cells)} cells, and row 1 has {len(header)}"
                )
            cell = cells[image].strip()
            if not cell:
                raise UserError(f"{path}, row {row}: nothing in column {header[image]!r}")
            numbers.append(row)
            if label is not None:
                text = cells[label].strip()
                if text and text not in known:
                    room -= _LABEL_BYTES + _LABEL_COPIES * sys.getsizeof(text)
                    if room < 0:
                        raise _too_much(path, f"{len(known):,} labels that differ")
                labels.append(known.setdefault(text, text) if text else None)
            yield cell

    packed = Strings(paths())
    return Columns(packed, None if label is None else labels, numbers)


def _room(data: bytes, *, path: str) -> float:
    """Bytes that are left for labels once all rows are read.

    Raises:
        UserError: The rows alone take too many.
    """
    count = 1 + data.count(b"\n") + data.count(b"\r") - data.count(b"\r\n")
    room = MAX_SHARE * machine_memory() - 2 * len(data) - _ROW_BYTES * count
    if room < 0:
        raise _too_much(path, f"{count:,} rows")
    return room


def _too_much(path: str, what: str) -> UserError:
    return UserError(
        f"{path}: {what} take more than a quarter of this machine's memory; pack the images into "
        "shards, or split the list"
    )


def _separator(lines: _Lines) -> str:
    """The one that splits the first line into the most cells."""
    first = next((line for line in lines if line.strip()), "").rstrip("\r\n")
    return max(SEPARATORS, key=lambda one: len(next(csv.reader([first], delimiter=one), [])))


def _undecodable_line(data: bytes) -> int:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return data[: error.start].count(b"\n") + 1
    return 1
