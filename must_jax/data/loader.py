"""Grain data sets to batches: which rows a process takes, threads, worker processes."""

from __future__ import annotations

import functools
import math
import re
import sys
from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

from must_jax.data import patience, worker
from must_jax.errors import EXIT_STOPPED, LostInputError

Batch = dict[str, np.ndarray]
# A batch that a worker was about to hand over when it ended is freed at the end of the run, by a
# process of Python's that would tell of it.
_QUIET = "ignore:resource_tracker:UserWarning"


def failures(batch: Batch) -> dict[int, str]:
    """Why the records of a batch did not decode that did not, by record."""
    rows = np.flatnonzero(batch["failed"] >= 0)
    return dict(zip(batch["failed"][rows].tolist(), batch["reason"][rows].tolist(), strict=True))


class LostWorkerError(LostInputError):
    """A process that makes batches has ended by itself, or was killed; the run may go on later."""

    exit_code = EXIT_STOPPED


class ProcessRows(grain.MapDataset):
    """The rows that one process takes of every global batch: neighbours, not every count-th.

    So the batches of the processes, one after the other, are the batch of a single process.
    """

    def __init__(self, parent: grain.MapDataset, local_batch: int, index: int, count: int):
        super().__init__(parent)
        self._local_batch = local_batch
        self._index = index
        self._count = count

    def __len__(self) -> int:
        return len(self._parent) // self._count

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, self._local_batch)
        return self._parent[(batch * self._count + self._index) * self._local_batch + row]


class Loader:
    """Iterates over the batches of one process, made ahead of time by threads or processes.

    Use it as a context manager or call `close`: threads and processes go on otherwise.
    """

    def __init__(
        self,
        examples: grain.MapDataset[Batch],
        *,
        batch_size: int,
        num_threads: int,
        num_workers: int,
        prefetch: int,
    ):
        """Starts nothing yet; the first batch asked for does.

        Args:
            examples: The examples of this process, a whole number of batches.
            batch_size: Examples in a batch of this process.
            num_threads: Threads that make examples; 0 makes them when they are asked for, in the
                caller's thread.
            num_workers: Processes that make batches, each with `num_threads` threads; 0 for none
                but the caller's.
            prefetch: Batches kept ready.
        """
        self._length = len(examples) // batch_size
        if num_workers:
            if _QUIET not in sys.warnoptions:
                sys.warnoptions.append(_QUIET)
            if not flags.FLAGS.is_parsed():
                # Grain hands its flags on to its workers, and can't when there are none: a
                # caller that is no absl program gets the defaults.
                flags.FLAGS.mark_as_parsed()
            # Workers share out what comes out of the map data set: whole batches, or theirs
            # would be made of other examples than one process's.
            batches = (
                examples.batch(batch_size)
                .to_iter_dataset(_read_options(num_threads, num_threads))
                .mp_prefetch(
                    grain.MultiprocessingOptions(
                        num_workers=num_workers,
                        per_worker_buffer_size=math.ceil(max(prefetch, 1) / num_workers),
                    ),
                    worker_init_fn=functools.partial(worker.begin, patience.known()),
                )
            )
        else:
            # Threads share out examples: the first batch is there sooner, and no thread has to
            # hold a batch of its own.
            batches = examples.to_iter_dataset(
                _read_options(num_threads, max(prefetch * batch_size, num_threads))
            ).batch(batch_size)
        self._iterator = iter(batches)

    def __len__(self) -> int:
        """Number of batches in all, from the start step on."""
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
          LostWorkerError: a process that makes them is gone.
        """
        try:
            return next(self._iterator)
        except RuntimeError as error:
            ended = re.search(r"was terminated unexpectedly with exit code (-?\d+)", str(error))
            if not ended:
                raise
            raise LostWorkerError(
                f"a process that makes batches (config.loader.num_workers) ended with exit code "
                f"{ended[1]}; where it is -9, it was killed, for want of memory most often, of "
                "which fewer such processes need less; the same command goes on from its last "
                "checkpoint"
            ) from error

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops threads and processes; no batch can be asked for afterwards."""
        self._iterator.close()


def _read_options(num_threads: int, buffered: int) -> grain.ReadOptions:
    return grain.ReadOptions(
        num_threads=num_threads, prefetch_buffer_size=buffered if num_threads else 0
    )
