"""What a run remembers beside its state, from one start to the next."""

import dataclasses
from typing import Any, Self

from must_jax.errors import UserError
from must_jax.noted import wrong_in_run

LINE = "line"  # what holds a log line among the `pending`


@dataclasses.dataclass(kw_only=True)
class RunNotes:
    """JSON values that a checkpoint holds beside the arrays, the same on all processes.

    Attributes:
      facts: what a step of the run means, apart from the config: its images, texts and checkpoint.
      config: the fields that it was last started with; None in notes of earlier versions.
      seconds: that the run took up to the checkpoint.
      test: a digest of the labelled test images; in notes of earlier versions, their path.
      zero_shot: accuracies before the first step, by the names that files have them under.
      best_by_labels: the epoch that scored best on the test images.
      evaluated_step: step of the last evaluation.
      probe: predictions of unlabelled images, by classifier, as `ProbePredictions.as_json`.
      evaluations: those so far, with what labels and what predictions without labels tell of them.
      failed_records: images that did not decode.
      pending: what metrics.jsonl does not tell yet: the metrics of each step since the last log
        line, and as {LINE: text} each line that the disk did not take.
      skipped_steps: steps that changed nothing, for they were not finite.
      skipped_in_row: how many of them were the last ones.
    """

    facts: dict[str, Any]
    config: dict[str, Any] | None = None
    seconds: float = 0.0
    test: str | None = None
    zero_shot: dict[str, float | None] | None = None
    best_by_labels: dict[str, Any] | None = None
    evaluated_step: int = 0
    probe: dict[str, Any] | None = None
    evaluations: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    failed_records: list[int] = dataclasses.field(default_factory=list)
    pending: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    skipped_steps: int = 0
    skipped_in_row: int = 0

    def json(self) -> dict[str, Any]:
        """What `from_json` makes them of again."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, notes: Any, *, path: str) -> Self:
        """The notes that a checkpoint holds.

        Args:
          notes: what `json` gave.
          path: what to call the run in a message.

        Raises:
          UserError: they have what this version doesn't know, or are none that a run leaves.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = notes.keys() - known if isinstance(notes, dict) else set()
        if unknown:
            raise UserError(
                f"{path}: its checkpoint notes {min(unknown)!r}, unknown to this version; use the "
                "one that wrote it"
            )
        wrong = wrong_in_run(notes)
        if wrong:
            raise UserError(
                f"{path}: what its checkpoint notes is not what a run leaves ({wrong}); use "
                "another one"
            )
        return cls(**notes)
