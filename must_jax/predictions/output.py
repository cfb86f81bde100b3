"""A file of predictions that a kill at any moment leaves fit to go on with."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from must_jax.errors import UserError
from must_jax.local_files import local_path, read_text, replace_file
from must_jax.predictions import rows
from must_jax.predictions.growing import GrowingFile
from must_jax.predictions.parquet import write_parquet
from must_jax.predictions.rows import Predicted

ENDINGS = (".csv", ".jsonl", ".parquet")


def check_output(path: str) -> pathlib.Path:
    """The path of a file of predictions.

    Raises:
      UserError: its ending stands for no format, or it is no local path.
    """
    local = local_path(path, called="--output", advice="copy the file when it is complete")
    if pathlib.Path(local).suffix.lower() not in ENDINGS:
        known = f"{', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}"
        raise UserError(f"--output={path} must be a name that ends in {known}")
    return pathlib.Path(local)


@dataclasses.dataclass
class Tally:
    """What all predictions so far come to.

    Attributes:
      images: how many there are, failed ones included.
      failed: how many of them failed.
      counts: how often each class is the first one.
      confidence: sum of the first probabilities.
    """

    images: int
    failed: int
    counts: list[int]
    confidence: float

    @classmethod
    def from_json(cls, value: Any, *, num_classes: int) -> Tally:
        """What a file says that the tally was.

        Raises:
          ValueError, TypeError: it can't have been.
        """
        tally = cls(**value)
        numbers = [tally.images, tally.failed, *tally.counts]
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError("its tally has what is no count")
        known = tally.images - tally.failed
        if len(tally.counts) != num_classes or sum(tally.counts) != known:
            raise ValueError("its tally does not add up")
        # Of each image the largest of K probabilities; a sum of float32's rounding beyond.
        if type(tally.confidence) is not float or not 0 <= tally.confidence <= 1.001 * known:
            raise ValueError("its tally has no confidence that can be")
        return tally

    def add(self, predicted: Predicted) -> None:
        """Takes further images."""
        first = predicted.classes[:, 0]
        known = first >= 0
        self.images += len(first)
        self.failed += int(np.sum(~known))
        counts = np.bincount(first[known], minlength=len(self.counts))
        self.counts = [a + b for a, b in zip(self.counts, counts.tolist(), strict=True)]
        self.confidence += float(np.sum(predicted.probabilities[known, 0], dtype=np.float64))


class Output:
    """Rows, and the images that failed in a file beside them.

    Until `finish`, both grow in files of their own, and `NAME.progress.json` tells how much of them
    counts. What a kill left behind that is cut off: the result is, byte for byte, that of a run
    that nothing stopped.

    Attributes:
      tally: of all rows, those of runs before this one too.
      failures: the list of what failed; there is none where nothing did.
    """

    def __init__(
        self,
        path: pathlib.Path,
        *,
        facts: Mapping[str, Any],
        class_names: Sequence[str],
        top_k: int,
        predicted_by: str,
    ):
        """Starts the files, or goes on with them.

        Args:
          path: from `check_output`.
          facts: what the rows depend on, JSON values by what a person calls them.
          class_names: K.
          top_k: classes in a row.
          predicted_by: what a row says that it is from.

        Raises:
          UserError: the file is there already, other facts held before, or it can't be written.
        """
        self._path, self._facts = path, dict(facts)
        self._class_names = [rows.readable(name) for name in class_names]
        self._top_k, self._predicted_by = top_k, predicted_by
        self._is_csv = path.suffix.lower() == ".csv"
        self._progress = path.with_name(f"{path.name}.progress.json")
        self.failures = path.with_name(f"{path.name}.failed.csv")
        self.tally = Tally(0, 0, [0] * len(class_names), 0.0)
        with self._told():
            if self._progress.exists():
                self.tally, size, size_of_failed = self._read_progress()
                self._rows = GrowingFile(path, size=size)
                if self.tally.failed:
                    self._failed = GrowingFile(self.failures, size=size_of_failed)
                else:  # a kill at the very end may have come after its removal
                    self._begin_failed()
                return
            for there in (path, self.failures):
                if there.exists():
                    raise UserError(
                        f"{there} is there already; move it away, or give another --output"
                    )
            path.parent.mkdir(parents=True, exist_ok=True)
            self._rows = GrowingFile(path, size=None)
            self._rows.append(rows.csv_lines([rows.columns(top_k)]) if self._is_csv else b"")
            self._begin_failed()
            self.commit()

    def _begin_failed(self) -> None:
        self._failed = GrowingFile(self.failures, size=None)
        self._failed.append(rows.csv_lines([["path", "reason"]]))

    def add(self, predicted: Predicted) -> None:
        """Appends rows.

        Raises:
          UserError: they can't be written.
        """
        table = list(
            rows.cells(predicted, class_names=self._class_names, predicted_by=self._predicted_by)
        )
        names = rows.columns(self._top_k)
        reasons = [[predicted.names[i], why] for i, why in sorted(predicted.reasons.items())]
        with self._told():
            self._rows.append(
                rows.csv_lines(table) if self._is_csv else rows.json_lines(names, table)
            )
            self._failed.append(rows.csv_lines([[*map(rows.readable, pair)] for pair in reasons]))
        self.tally.add(predicted)

    def commit(self) -> None:
        """From here on, a kill loses nothing of what was added.

        Raises:
          UserError: it can't be written.
        """
        with self._told():
            done = {
                "facts": self._facts,
                "tally": dataclasses.asdict(self.tally),
                "bytes": self._rows.sync(),
                "bytes_of_failed": self._failed.sync(),
            }
            replace_file(self._progress, json.dumps(done).encode())

    def finish(self) -> None:
        """Puts the files in their places.

        Raises:
          UserError: they can't be written.
        """
        self.commit()
        with self._told():
            if self._path.suffix.lower() == ".parquet" and self._rows.partial.exists():
                self._rows.close()
                write_parquet(
                    self._rows.partial, self._path, top_k=self._top_k, num_rows=self.tally.images
                )
                self._rows.remove()
            else:
                self._rows.move()
            if self.tally.failed:
                self._failed.move()
            else:
                self._failed.remove()
            self._progress.unlink()

    def close(self) -> None:
        """Closes the files as they are: what counts of them is on the disk since `commit`."""
        for file in (self._rows, self._failed):
            with contextlib.suppress(OSError):
                file.close()

    def _read_progress(self) -> tuple[Tally, int, int]:
        """The tally, and how many bytes of either file count."""
        again = f"remove it and {self._path.name}.partial to start anew"
        try:
            done = json.loads(read_text(self._progress))
            before = dict(done["facts"])
            tally = Tally.from_json(done["tally"], num_classes=len(self._class_names))
            sizes = done["bytes"], done["bytes_of_failed"]
            if any(type(size) is not int or not 0 <= size < 2**63 for size in sizes):
                raise ValueError("it has what is no number of bytes")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or error
            reason = f"it has no {error}" if isinstance(error, KeyError) else reason
            raise UserError(f"{self._progress} cannot be read ({reason}); {again}") from error
        for name, value in self._facts.items():
            if before.get(name) != value:
                raise UserError(
                    f"{self._path} was begun with {name} {before.get(name)}, and it is {value} "
                    f"now: {self._progress} tells; {again}, or give another --output"
                )
        return tally, *sizes

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self._path} cannot be written ({error.strerror})") from error
