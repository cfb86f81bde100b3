"""The images of a run that do not decode."""

from must_jax import distributed
from must_jax.data.loader import Batch, failures
from must_jax.data.sources import Source
from must_jax.errors import UserError
from must_jax.progress import say


class FailedImages:
    """The records of a source that did not decode: each is named once, with the reason.

    A process knows of its own at once, and of the others' from `share` on.
    """

    def __init__(self, source: Source, *, records: list[int]):
        """`records` are known to have failed already."""
        self._source = source
        self._unshared: dict[int, str] = {}
        self.records = set(records)

    def note(self, batch: Batch) -> None:
        """Takes a batch's `failed` and `reason`."""
        for record, reason in failures(batch).items():
            if record not in self.records:
                self.records.add(record)
                self._unshared[record] = f"{self._source.name_of(record)}: {reason}"

    def share(self) -> None:
        """Makes the records known to all processes, and names new ones. All must call it."""
        reasons: dict[str, str] = {}
        for theirs in distributed.gather(self._unshared):
            reasons |= {str(record): reason for record, reason in theirs.items()}
        self.records |= set(map(int, reasons))
        self._unshared = {}
        for record in sorted(reasons, key=int):
            say(f"skipped {reasons[record]}")

    def check(self, *, max_fraction: float) -> None:
        """Ends the run when more than a share of the images failed.

        Raises:
          UserError: they did, on every process that shares what the others know.
        """
        if len(self.records) > max_fraction * len(self._source):
            raise UserError(
                f"{len(self.records)} of the {len(self._source)} images in {self._source.path} do "
                "not decode (named above), more than config.loader.max_failed_fraction allows; "
                "mend them, or raise it; a run that has a checkpoint does not go on without them"
            )
