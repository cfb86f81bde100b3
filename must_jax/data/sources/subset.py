"""Some records of a source, as a source of its own."""

from __future__ import annotations

from collections.abc import Sequence

from must_jax.data.sources.source import Source


class Subset:
    """Records of a source, without labels.

    Attributes:
        path: Of the whole source.
        labels: None.
    """

    def __init__(self, source: Source, records: Sequence[int]):
        """`records` are indices in the source."""
        self.path = source.path
        self.labels = None
        self._source = source
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def read(self, record: int) -> bytes:
        """The bytes of an image.

        Raises:
            UndecodableImageError: They can't be had.
        """
        return self._source.read(self._records[record])

    def name_of(self, record: int) -> str:
        """Where an image comes from."""
        return self._source.name_of(self._records[record])
