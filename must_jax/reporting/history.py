"""A run's metrics.jsonl as lines to draw."""

from __future__ import annotations

import json
import math
import pathlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

from must_jax.local_files import read_bytes

MAX_NUMBER = 1e100  # none of a run's; float32 ends at 3e38, and differences of numbers are drawn
MAX_STEP = 2**31 - 1
MAX_POINTS = 160  # of a line; more are averaged, for the page to stay small

Points = Sequence[tuple[float, float]]


def read_history(path: pathlib.Path, *, steps_per_epoch: int) -> dict[str, Points]:
    """Each metric over epochs, by the name that it has in the file.

    Lines that are no JSON, as a kill leaves them, or of no step are passed over; so is a missing
    file. What is null there was no number.
    """
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    try:
        lines = read_bytes(path).decode(errors="replace").splitlines()
    except OSError:
        return {}
    for line in lines:
        try:
            values = json.loads(line)
            step = values.pop("step")
            if type(step) is not int or not 0 <= step <= MAX_STEP:
                continue
            for name, value in values.items():
                number = math.nan if value is None else float(value)
                if abs(number) > MAX_NUMBER:
                    number = math.nan
                found[name].append((step / steps_per_epoch, number))
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
            continue
    return {name: thinned(points) for name, points in found.items()}


def thinned(points: Points, *, most: int = MAX_POINTS) -> Points:
    """Neighbouring points averaged so that at most `most` are left; the last one stays."""
    if len(points) <= most:
        return points
    *before, last = points
    size = math.ceil(len(before) / (most - 1))
    means = []
    for start in range(0, len(before), size):
        part = [point for point in before[start : start + size] if math.isfinite(point[1])]
        if part:
            means.append(tuple(sum(values) / len(part) for values in zip(*part, strict=True)))
    return [*means, last]


def last_of(history: Mapping[str, Points], name: str) -> float | None:
    """The last value of a metric; None where there is none."""
    points = history.get(name)
    return points[-1][1] if points else None
