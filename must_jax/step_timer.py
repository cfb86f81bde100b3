"""How long steps take, and how much of that the device waits for data."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import jax

Batch = TypeVar("Batch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lap:
    """Steps, the seconds that they took, and those of them in which the device waited for data."""

    steps: int
    seconds: float
    waiting: float


@dataclasses.dataclass(frozen=True)
class _Step:
    asked: float  # when the loop asked for its batch, seconds
    got: float  # when the batch was there
    done: Future[float]  # when the device was done with it


class StepTimer:
    """Times the steps of a loop that dispatches them before their predecessors are done.

    The time that `next(batches)` takes says little there: as long as the device has steps to do, a
    batch that comes late costs nothing. The device waits for data from the later of two moments,
    the loop asking for a batch and the device being done with every step before, until the batch
    is there:

      waiting(i) = max(0, got(i) - max(asked(i), done(i - 1)))

    A thread that blocks on the results of each step in turn tells `done`. It is late by as long as
    it takes to wake up and get the interpreter's lock, some milliseconds where the pipeline's
    threads are busy: waiting is never told too high. Copying a batch to the device is no part of
    it, nor is the first step, which waits for the pipeline to fill and for the compiler.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.perf_counter,
        done_at: Callable[[Any], float] | None = None,
    ):
        """Starts no thread before the first step.

        Args:
          clock: seconds.
          done_at: waits until the device is done with a step, given what the step returned, and
            returns the clock's time then.
        """
        self._clock = clock
        self._done_at = done_at or self._block
        self._watcher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="step-timer")
        self._fetched = (0.0, 0.0)
        self._steps: list[_Step] = []
        self._before: float | None = None  # when the device was done with the last lap's last step
        self._started = 0.0  # of this lap, later by the pauses in it

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, as the loop is to take them."""
        iterator = iter(batches)
        with contextlib.suppress(StopIteration):
            while True:
                asked = self._clock()
                batch = next(iterator)
                self._fetched = (asked, self._clock())
                yield batch

    def dispatched(self, results: Any) -> None:
        """Takes what the step on the last batch returned: arrays that are not donated later."""
        done = self._watcher.submit(self._done_at, results)
        self._steps.append(_Step(*self._fetched, done))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps what is done inside out of the lap; the device must be done with all steps."""
        started = self._clock()
        yield
        if self._steps or self._before is not None:
            self._started += self._clock() - started

    def lap(self) -> Lap | None:
        """Ends a lap, the device being done with all steps; None if none was taken but the first.

        The first lap starts when the first step is done.
        """
        now, steps, self._steps = self._clock(), self._steps, []
        if not steps:
            return None
        done = [step.done.result() for step in steps]
        if self._before is None:
            self._started += done[0]
            self._before, steps, done = done[0], steps[1:], done[1:]
        waiting = 0.0
        for step, at in zip(steps, done, strict=True):
            assert self._before is not None
            waiting += max(0.0, step.got - max(step.asked, self._before))
            self._before = at
        seconds, self._started = now - self._started, now
        return Lap(steps=len(steps), seconds=seconds, waiting=waiting) if steps else None

    def _block(self, results: Any) -> float:
        jax.block_until_ready(results)
        return self._clock()
