"""What of a source is still to be predicted."""

from __future__ import annotations

from must_jax.data.sources import Source


class Rest:
    """A source without its first records, and without labels.

    Attributes:
      path: of the whole source.
      labels: None.
    """

    def __init__(self, source: Source, *, start: int):
        """`start` is how many records are left out."""
        self.path = source.path
        self.labels = None
        self._source = source
        self._start = start

    def __len__(self) -> int:
        return len(self._source) - self._start

    def read(self, record: int) -> bytes:
        """The bytes of an image.

        Raises:
          UndecodableImageError: they can't be had.
        """
        return self._source.read(self._start + record)

    def name_of(self, record: int) -> str:
        """Where an image comes from."""
        return self._source.name_of(self._start + record)
