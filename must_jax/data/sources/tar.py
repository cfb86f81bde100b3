"""Tar shards in WebDataset's layout."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple

import numpy as np

from must_jax.data import files
from must_jax.data.decode import UndecodableImageError
from must_jax.data.sources.classes import Classes, Labels, index_labels
from must_jax.data.sources.folder import IMAGE_SUFFIXES
from must_jax.data.sources.source import MAX_IMAGE
from must_jax.data.sources.strings import Strings
from must_jax.data.sources.tar_index import Member, content, members
from must_jax.errors import UserError, reason

_LABEL_SUFFIX = "cls"
_INDEXING_THREADS = 16


class Sample(NamedTuple):
    """An image in a shard.

    Attributes:
        key: Its name without the ending, which its label has too.
        label: As written, or None.
    """

    key: str
    start: int
    size: int
    label: str | int | None


class TarShards:
    """The images in tar shards, in the order of the shards and of the files in them.

    Files that lie next to each other and differ only in what follows the first dot of their names
    are one sample: an image, and perhaps its label in a `.cls` file. Nothing is unpacked; an index
    of all headers is made once, and images are read in place.

    Attributes:
        path: The shards, as given.
        labels: int32 (number of images,), or None for an unlabelled source.
    """

    def __init__(
        self,
        path: str,
        shards: Sequence[str],
        *,
        image_field: str = "",
        label_field: str = "",
        classes: Classes | None = None,
        labels: Labels = "auto",
    ):
        """Reads the headers of all shards.

        Args:
            path: What a person calls the shards.
            shards: Uncompressed tar archives, paths or URLs.
            image_field: Ending of the images, such as `jpg`; empty for any of an image.
            label_field: Ending of the labels, or their key in a sample's `.json`; empty for `cls`.
                Where it is named, labels are never passed over.
            classes: What labels are looked up in; None for an unlabelled source.
            labels: "required": every image has a label; "auto": if any has none, none has.

        Raises:
            UserError: A shard is missing, damaged or cut short, or a sample has no image or more
                than one; labels are required, or named, and one is missing or no class.
        """
        self.path = path
        self._shards = tuple(shards)

        def index(shard: str) -> list[Sample]:
            def read(file: BinaryIO) -> list[Sample]:
                return list(_samples(file, shard, image_field, label_field or _LABEL_SUFFIX))

            try:
                return files.read_in(shard, read)
            except OSError as error:
                raise UserError(f"{shard}: cannot be read ({reason(error)})") from error

        # Threads for the sake of remote shards: most of the time goes into waiting.
        with ThreadPoolExecutor(_INDEXING_THREADS) as pool:
            samples = list(pool.map(index, self._shards))
        joined = list(itertools.chain.from_iterable(samples))
        if not joined:
            raise UserError(f"{path}: no images in {len(self._shards)} tar files")
        self._shard = np.repeat(np.arange(len(samples), dtype=np.int32), list(map(len, samples)))
        self._start = np.array([sample.start for sample in joined], np.int64)
        self._size = np.array([sample.size for sample in joined], np.int64)
        self._keys = Strings(sample.key for sample in joined)
        some = any(sample.label is not None for sample in joined)
        self.labels = index_labels(
            [sample.label for sample in joined],
            classes=classes,
            labels="required" if label_field and some else labels,
            where=self.name_of,
        )

    def __len__(self) -> int:
        return len(self._start)

    def name_of(self, record: int) -> str:
        """The shard and the sample's key, with a colon between."""
        return f"{self._shards[self._shard[record]]}:{self._keys[record]}"

    def read(self, record: int) -> bytes:
        """The bytes of the image.

        Raises:
            UndecodableImageError: The shard can't be read, or the image is larger than `MAX_IMAGE`.
        """
        shard, size = self._shards[self._shard[record]], int(self._size[record])
        if size > MAX_IMAGE:
            raise UndecodableImageError(self.name_of(record), f"larger than {MAX_IMAGE >> 20} MiB")
        try:
            data = files.read_range(shard, int(self._start[record]), size)
        except OSError as error:
            raise UndecodableImageError(self.name_of(record), reason(error)) from error
        if len(data) < size:
            raise UndecodableImageError(self.name_of(record), "the shard is shorter than it was")
        return data


def _samples(file: BinaryIO, shard: str, image_field: str, label_field: str) -> Iterator[Sample]:
    found = members(file, path=shard)
    for key, group in itertools.groupby(found, key=lambda member: _split(member.name)[0]):
        # What macOS and WebDataset's own writer add beside the samples.
        if any(part.startswith((".", "__")) for part in key.split("/")):
            continue
        parts: dict[str, Member] = {}
        for member in group:
            ending = _split(member.name)[1].lower()
            if ending in parts:
                raise UserError(f"{shard}:{key}: two files end in .{ending}")
            parts[ending] = member
        wanted = [image_field.lower().lstrip(".")] if image_field else _IMAGE_ENDINGS
        images = [parts[ending] for ending in wanted if ending in parts]
        if len(images) != 1:
            what = "more than one image" if images else "no image"
            raise UserError(
                f"{shard}:{key}: {what} among {', '.join('.' + ending for ending in parts)}; "
                "say which ending with config.dataset.image_field"
            )
        label = _label(file, parts, f"{shard}:{key}", label_field)
        yield Sample(key, images[0].start, images[0].size, label)


_IMAGE_ENDINGS = [suffix.lstrip(".") for suffix in IMAGE_SUFFIXES]


def _split(name: str) -> tuple[str, str]:
    """A name up to the first dot after its last slash, and what follows that dot."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    hidden = "." if base.startswith(".") else ""
    stem, _, ending = base.removeprefix(".").partition(".")
    return f"{folder}{slash}{hidden}{stem}", ending


def _label(
    file: BinaryIO, parts: dict[str, Member], name: str, label_field: str
) -> str | int | None:
    ending = label_field.lower().lstrip(".")
    try:
        if ending in parts:
            return content(file, parts[ending]).decode("utf-8-sig").strip() or None
        if "json" not in parts or label_field == _LABEL_SUFFIX:
            return None
        values = json.loads(content(file, parts["json"]))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: its label does not read ({error})") from error
    value = values.get(label_field) if isinstance(values, dict) else None
    if not isinstance(value, str | int | None) or isinstance(value, bool):
        raise UserError(f"{name}: {label_field!r} in its .json is neither a name nor an integer")
    return value
