"""Class names that are the same, or nearly the same to the text tower."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

PAIRS_SHOWN = 20
_SAME = 0.999  # cosine above which two classes are one, whatever the others are like
_SAMPLED_CLASSES = 2000  # whose pairs the quartiles are taken from
_ROWS = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class NearNames:
    """Pairs of classes whose classifier columns are close.

    Attributes:
        pairs: Label, label and cosine, the nearest pairs first.
        median: Of all pairs' cosines.
        bound: Cosine above which a pair is flagged.
        num_flagged: How many pairs are above it, shown or not.
        same: Names that several classes have, but for case and separators, and their labels.
    """

    pairs: tuple[tuple[int, int, float], ...]
    median: float
    bound: float
    num_flagged: int
    same: tuple[tuple[str, tuple[int, ...]], ...]


def plain(name: str) -> str:
    """A name in lower case, with single spaces and no punctuation around it."""
    text = unicodedata.normalize("NFKC", name).casefold()
    return re.sub(r"[\s_/-]+", " ", text).strip(" .,;:'\"") or text


def same_names(synonyms: Sequence[Sequence[str]]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The `plain` names that belong to more than one class, with the labels of those classes."""
    labels: dict[str, list[int]] = defaultdict(list)
    for label, names in enumerate(synonyms):
        for name in dict.fromkeys(plain(name) for name in names):
            labels[name].append(label)
    return tuple((name, tuple(found)) for name, found in labels.items() if len(found) > 1)


def near_names(classifier: np.ndarray, synonyms: Sequence[Sequence[str]]) -> NearNames:
    """Finds the pairs of classes that the text tower hardly tells apart.

    A pair is flagged when its cosine is above the upper quartile of all pairs' cosines by more
    than three times the distance between the quartiles (Tukey's "far out"), or above 0.999.

    Args:
        classifier: (E, K), columns of any length.
        synonyms: All names of each of the K classes.
    """
    columns = (classifier / np.linalg.norm(classifier, axis=0)).T.astype(np.float32)
    median, fence = _median_and_fence(columns)
    bound = min(_SAME, fence)
    nearest: list[tuple[int, int, float]] = []
    num_flagged = 0
    for start in range(0, len(columns), _ROWS):
        cosines = columns[start : start + _ROWS] @ columns.T
        # Each pair once: the class of the row before the class of the column.
        cosines[np.tri(len(cosines), len(columns), k=start, dtype=bool)] = -np.inf
        num_flagged += int((cosines > bound).sum())
        flat = cosines.ravel()
        for place in np.argpartition(flat, -min(PAIRS_SHOWN, flat.size))[-PAIRS_SHOWN:]:
            if np.isfinite(flat[place]):
                row, column = divmod(int(place), len(columns))
                nearest.append((start + row, column, float(flat[place])))
    nearest.sort(key=lambda pair: (-pair[2], pair))
    return NearNames(
        pairs=tuple(nearest[:PAIRS_SHOWN]),
        median=median,
        bound=bound,
        num_flagged=num_flagged,
        same=same_names(synonyms),
    )


def _median_and_fence(columns: np.ndarray) -> tuple[float, float]:
    rows = columns[:: -(-len(columns) // _SAMPLED_CLASSES)]
    cosines = (rows @ rows.T)[np.triu_indices(len(rows), k=1)]
    if not cosines.size:
        return 1.0, 1.0
    lower, median, upper = np.quantile(cosines, (0.25, 0.5, 0.75))
    return float(median), float(upper + 3 * (upper - lower))
