"""How names are spelled that may be of any length and any letters, in a time that has an end."""

import difflib
import functools
import itertools
import unicodedata
from collections.abc import Iterable

# Combining marks in a row, as in the stream-safe text of UAX #15, section 13. To bring them in
# order takes a time that grows with the square of their number.
MAX_MARKS = 30
_COMPARED_NAMES, _COMPARED_LETTERS = 10_000, 100


def has_endless_marks(text: str) -> bool:
    """Whether a text has more than `MAX_MARKS` combining marks in a row, and shouldn't be composed.

    A letter counts as what it is decomposed into: some are two marks and no mark themselves.
    """
    return not text.isascii() and "m" * (MAX_MARKS + 1) in "".join(map(_decomposed, text))


@functools.lru_cache(2**12)
def _decomposed(letter: str) -> str:
    """An "m" for each mark that a letter is decomposed into, a "-" for anything else."""
    return "".join(
        "m" if unicodedata.combining(part) else "-"
        for part in unicodedata.normalize("NFKD", letter)
    )


def nearest(name: str, names: Iterable[str]) -> str:
    """The one of `names`, at least one, that is written most like `name`.

    Of many names the first 10,000 are looked at, and of each its first 100 letters.
    """
    by_start: dict[str, str] = {}
    for other in itertools.islice(names, _COMPARED_NAMES):
        by_start.setdefault(other[:_COMPARED_LETTERS], other)
    start = name[:_COMPARED_LETTERS]
    return by_start[difflib.get_close_matches(start, by_start, n=1, cutoff=0)[0]]
