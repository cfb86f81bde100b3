"""What every source of images is, whatever it is stored as."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from must_jax.data import files
from must_jax.data.decode import UndecodableImageError, decode_image
from must_jax.errors import reason

# Bytes of an encoded image. Each of many threads may hold one; raw, it has some 80 megapixels.
MAX_IMAGE = 2**28


class Source(Protocol):
    """Encoded images by index, read by many threads at once and handed to worker processes.

    Attributes:
        path: What a person calls it: a folder, a list, shards, a data set and its split.
        labels: int32 (number of images,), the class of each image, -1 where it can't be told; None
            for an unlabelled source. Where labels lie beside the images in large files, no array
            but a sequence, whose items are quick to get once `read` has read the record.
    """

    path: str

    @property
    def labels(self) -> np.ndarray | Sequence[int] | None: ...

    def __len__(self) -> int:
        """Number of images."""

    def read(self, record: int) -> bytes:
        """The bytes of one image file.

        Raises:
            UndecodableImageError: They can't be had.
        """

    def name_of(self, record: int) -> str:
        """Where the image comes from, for messages: a path, or a shard and a key."""


def decode_record(source: Source, record: int) -> Image.Image:
    """Reads and decodes one image of a source, as `decode_image` does.

    Raises:
        UndecodableImageError: Its bytes can't be had, or are no image that can be used.
    """
    return decode_image(source.read(record), name=source.name_of(record))


def read_image_file(path: str) -> bytes:
    """All bytes of a file, local or remote.

    Raises:
        UndecodableImageError: It is missing, can't be read, or is larger than `MAX_IMAGE`.
    """
    try:
        return files.read_file(path, limit=MAX_IMAGE)
    except OSError as error:
        raise UndecodableImageError(path, reason(error)) from error
