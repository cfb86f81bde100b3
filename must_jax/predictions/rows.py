"""A row of predictions, and how it is written as text."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

# What spreadsheets take a cell for a formula by (OWASP, "CSV injection").
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


@dataclasses.dataclass(frozen=True)
class Predicted:
    """Predictions of n images, k classes each, the most probable first.

    Attributes:
      names: of the images, n.
      classes: (n, k) int, all of them -1 where an image failed.
      probabilities: (n, k) float32.
      reasons: why images failed, by their place.
    """

    names: Sequence[str]
    classes: np.ndarray
    probabilities: np.ndarray
    reasons: dict[int, str]


def columns(top_k: int) -> list[str]:
    """Names of the columns, in their order."""
    ranked = [f"{what}_{rank}" for rank in range(1, top_k + 1) for what in ("class", "probability")]
    return ["path", *ranked, "predicted_by"]


def cells(rows: Predicted, *, class_names: Sequence[str], predicted_by: str) -> Iterator[list[Any]]:
    """The cells of each row: text, numbers, and None in all but two of an image that failed."""
    nothing: list[Any] = [None] * (2 * rows.classes.shape[1])
    for name, classes, probabilities in zip(
        rows.names, rows.classes.tolist(), rows.probabilities, strict=True
    ):
        ranked = nothing
        if classes[0] >= 0:
            # Of a float32, its shortest digits that tell it from its neighbours.
            pairs = zip(classes, map(str, probabilities), strict=True)
            ranked = [cell for c, p in pairs for cell in (class_names[c], float(p))]
        yield [readable(name), *ranked, predicted_by]


def csv_lines(rows: Sequence[Sequence[Any]]) -> bytes:
    """Lines of a CSV file in UTF-8. Text that a spreadsheet would run gets an apostrophe first."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([map(_harmless, row) for row in rows])
    return text.getvalue().encode()


def json_lines(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    """A JSON object a line, in UTF-8."""
    objects = (dict(zip(names, row, strict=True)) for row in rows)
    return "".join(f"{json.dumps(one, ensure_ascii=False)}\n" for one in objects).encode()


def readable(name: str) -> str:
    r"""A file's name as text: bytes that are not UTF-8 are told as `\xff`."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return name.encode("utf-8", "backslashreplace").decode()


def _harmless(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
