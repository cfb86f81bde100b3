"""Digests that tell one source from another, wherever they lie."""

import bisect
import hashlib
import itertools
import os
from collections.abc import Iterator

import numpy as np

from must_jax.data import files
from must_jax.data.sources import Source
from must_jax.data.sources.example_images import ExampleImages
from must_jax.data.sources.list_file import ImageList


def test_images_digest(source: Source | None) -> str | None:
    """SHA-256 of the names of test images, in their order, and of their labels; None without any.

    Told alike, accuracies on them can be compared.
    """
    if source is None:
        return None
    return hashlib.sha256(f"{names_digest(source)} {labels_digest(source)}".encode()).hexdigest()


def labels_digest(source: Source) -> str | None:
    """SHA-256 of the labels; where records hold them, what is read of each; None without any."""
    labels = source.labels
    if labels is None:
        return None
    if isinstance(source, ExampleImages):
        return source.label_feature
    return hashlib.sha256(np.asarray(labels, np.int32).tobytes()).hexdigest()


def names_digest(source: Source) -> str:
    """SHA-256 of the names of all records in their order, as they are seen from their folder.

    Of shards that tell no names without being read, those of the shards and their numbers of
    records.
    """
    folder = _folder(source)
    names = _shards(source) if isinstance(source, ExampleImages) else _names(source)
    sha256 = hashlib.sha256()
    for name in names:
        sha256.update(name.removeprefix(folder).encode("utf-8", "surrogateescape") + b"\0")
    return sha256.hexdigest()


def _folder(source: Source) -> str:
    """What all names of a source start with because of where it lies."""
    if isinstance(source, ImageList):
        return f"{files.parent(source.path)}/"
    if not (os.path.isabs(source.path) or files.is_remote(source.path)):
        return ""  # a TFDS data set's name
    # Shards are given by a pattern, which they share the folders with.
    pairs = zip(source.path.split("/"), source.name_of(0).split("/"), strict=False)
    return "".join(f"{a}/" for a, b in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _names(source: Source) -> Iterator[str]:
    return map(source.name_of, range(len(source)))


def _shards(source: Source) -> Iterator[str]:
    """Of records called SHARD[NUMBER], each shard, its first number and how many follow."""

    def shard(record: int) -> str:
        return source.name_of(record).rpartition("[")[0]

    start = 0
    while start < len(source):
        first, records = shard(start), range(len(source))
        end = bisect.bisect_left(records, True, lo=start, key=lambda r: shard(r) != first)
        yield f"{source.name_of(start)} {end - start}"
        start = end
