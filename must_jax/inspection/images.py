"""Sizes, formats, damage and duplicates among the images of a source."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from must_jax.data.decode import UndecodableImageError, decode_image, open_image
from must_jax.data.sources import Source

_GOLDEN_RATIO = (5**0.5 - 1) / 2
_CHUNK = 64  # images between two looks at the clock


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """What one record is.

    Attributes:
        name: As the source calls it.
        reason: Why it does not decode; empty when it does, and then the rest is known.
        size: Width and height, upright, pixels.
        format: Pillow's name of the file format.
        digest: Of the file's bytes.
    """

    name: str
    reason: str = ""
    size: tuple[int, int] = (0, 0)
    format: str = ""
    digest: bytes = b""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSurvey:
    """What the images of a source are like.

    Attributes:
        looked_at: Number of images read.
        sizes: int (images that decode, 2), width and height, upright, pixels.
        formats: Number of images by format, the most frequent first.
        failures: Name and reason of each image that does not decode.
        duplicates: Names of images whose files are the same to the byte, a group each.
    """

    looked_at: int
    sizes: np.ndarray
    formats: dict[str, int]
    failures: tuple[tuple[str, str], ...]
    duplicates: tuple[tuple[str, ...], ...]

    @property
    def short_sides(self) -> np.ndarray:
        """Of the images that decode, pixels."""
        return self.sizes.min(axis=1)


def spread(length: int, count: int) -> np.ndarray:
    """Indices spread evenly over 0 to `length` - 1, any number of the first of them too.

    Args:
        length: Number of records.
        count: Number of indices to give, at most `length` of them.

    Returns:
        int (min(count, length),), all different, in the order of a golden-ratio sequence.
    """
    count = min(length, count)
    evenly = (2 * np.arange(count) + 1) * length // (2 * max(count, 1))
    places = np.argsort(np.argsort(np.arange(count) * _GOLDEN_RATIO % 1))
    return evenly[places]


def look(source: Source, record: int) -> Look:
    """Reads and decodes one record."""
    name = source.name_of(record)
    try:
        data = source.read(record)
        size = decode_image(data, name=name).size
    except UndecodableImageError as error:
        return Look(name=name, reason=error.reason)
    with open_image(data) as image:
        found = image.format or "unknown"
    digest = hashlib.blake2b(data, digest_size=16).digest()
    return Look(name=name, size=size, format=found, digest=digest)


def look_at(
    source: Source, records: Sequence[int] | np.ndarray, *, seconds: float, num_threads: int
) -> list[Look]:
    """Looks at records in their order until all are done or the time is up.

    Args:
        source: The images.
        records: Indices in the source.
        seconds: Time after which no further images are begun; some are looked at in any case.
        num_threads: Threads that read and decode.

    Returns:
        One look a record, as many of the first as there was time for.
    """
    started = time.perf_counter()
    looks: list[Look] = []
    with concurrent.futures.ThreadPoolExecutor(max_workers=num_threads) as pool:
        for start in range(0, len(records), _CHUNK):
            if start and time.perf_counter() - started > seconds:
                break
            chunk = [int(record) for record in records[start : start + _CHUNK]]
            looks += pool.map(lambda record: look(source, record), chunk)
    return looks


def survey(looks: Iterable[Look]) -> ImageSurvey:
    """Puts the looks together."""
    looks = list(looks)
    decoded = [each for each in looks if not each.reason]
    names: dict[bytes, list[str]] = defaultdict(list)
    for each in decoded:
        names[each.digest].append(each.name)
    return ImageSurvey(
        looked_at=len(looks),
        sizes=np.array([each.size for each in decoded], int).reshape(-1, 2),
        formats=dict(Counter(each.format for each in decoded).most_common()),
        failures=tuple((each.name, each.reason) for each in looks if each.reason),
        duplicates=tuple(tuple(group) for group in names.values() if len(group) > 1),
    )
