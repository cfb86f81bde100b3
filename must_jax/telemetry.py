"""What the machine makes of a run: rates, utilisation, memory, and whether data keep up."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import psutil

from must_jax import distributed
from must_jax.chips import known_chip
from must_jax.step_timer import Batch, Lap, StepTimer

TOLD_FRACTION = 0.02  # of the time waiting for data, from which on a log line tells it
WARNED_FRACTION = 0.05  # from which on it is worth a warning
MUCH = 0.25  # more or less than was warned of: worth another
MIN_STEPS = 10  # that a warning is founded on
BUSY_FRACTION = 0.8  # of the CPU cores, from which on more workers would not help
IDLE_CORES = 0.8  # busy cores below which threads wait for the images' storage
GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Performance:
    """Of the steps since the log line before.

    Attributes:
      fields: by name, for metrics.jsonl; what is not known here is left out.
      told: the same in words, for the terminal.
      warning: that the input pipeline falls short, and what helps; empty where it was told before.
    """

    fields: dict[str, float]
    told: tuple[str, ...]
    warning: str


@dataclasses.dataclass(frozen=True)
class _Host:
    """How a process fared: fractions of the lap, and CPU cores."""

    waiting: float
    busy_cores: float
    cores: int


class Telemetry:
    """Watches the steps of a run. All processes must call `lap` at the same steps."""

    def __init__(
        self,
        *,
        batch_size: int,
        flops_per_image: float,
        num_threads: int,
        num_workers: int,
        timer: StepTimer | None = None,
    ):
        """Starts watching.

        Args:
          batch_size: global.
          flops_per_image: of a training step.
          num_threads: of the input pipeline, in each process that makes batches.
          num_workers: processes that make batches; 0 for this one alone.
          timer: of the steps.
        """
        self._timer = timer or StepTimer()
        self._batch_size = batch_size
        self._flops_per_image = flops_per_image
        self._num_threads = num_threads
        self._num_workers = num_workers
        self._usage: tuple[float, float] | None = None  # CPU seconds and time at a lap's start
        self._unjudged: list[tuple[Lap, _Host]] = []
        self._warned: float | None = None

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, as the loop is to take them."""
        return self._timer.timed(batches)

    def dispatched(self, results: Any) -> None:
        """Takes what the step on the last batch returned: arrays that are not donated later."""
        self._timer.dispatched(results)
        if self._usage is None:
            self._usage = _usage()  # without that of compiling

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps what is done inside out; the device must be done with all steps."""
        before = _usage()
        with self._timer.paused():
            yield
        if self._usage is not None:
            used, took = _since(before)
            self._usage = (self._usage[0] + used, self._usage[1] + took)

    def lap(self) -> Performance | None:
        """Of the steps since the call before; the device must be done with all of them.

        The first step of all is left out, and None where there is none but it.
        """
        lap = self._timer.lap()
        if lap is None:
            return None
        hosts = [_Host(**told) for told in distributed.gather(dataclasses.asdict(self._host(lap)))]
        # Every step is one of all processes: the slowest input pipeline holds up the others.
        slowest = max(range(len(hosts)), key=lambda i: hosts[i].waiting)
        waiting = hosts[slowest].waiting
        chips = jax.device_count()
        rate = lap.steps * self._batch_size / lap.seconds
        fields = {
            "images_per_second": rate,
            "images_per_second_per_chip": rate / chips,
            "step_seconds": lap.seconds / lap.steps,
            "data_wait_fraction": waiting,
        }
        told = [f"{rate:.0f} images/s" + (f" ({rate / chips:.0f} a chip)" if chips > 1 else "")]
        chip = known_chip(jax.devices()[0].device_kind)
        if chip:
            fields["mfu"] = self._flops_per_image * rate / chips / chip.flops
            told.append(f"MFU {100 * fields['mfu']:.1f} %")
        if waiting >= TOLD_FRACTION:
            told.append(f"waiting for data {100 * waiting:.0f} %")
        memory = _device_memory()
        if "device_memory_peak_bytes" in memory:
            told.append(f"memory {memory['device_memory_peak_bytes'] / GIB:.1f} GiB")
        fields |= memory | {"host_memory_bytes": psutil.Process().memory_info().rss}
        warning = self._judge(lap, hosts[slowest], slowest if len(hosts) > 1 else None)
        return Performance(
            fields={f"perf/{name}": float(value) for name, value in fields.items()},
            told=tuple(told),
            warning=warning,
        )

    def _host(self, lap: Lap) -> _Host:
        used, took = _since(self._usage or _usage())
        self._usage = _usage()
        busy = max(0.0, used) / took if took > 0 else 0.0
        return _Host(lap.waiting / lap.seconds, busy, _num_cores())

    def _judge(self, lap: Lap, host: _Host, process: int | None) -> str:
        """The warning that is due, if any."""
        self._unjudged.append((lap, host))
        steps = sum(lap.steps for lap, _ in self._unjudged)
        if steps < MIN_STEPS:
            return ""
        seconds = sum(lap.seconds for lap, _ in self._unjudged)
        waiting = sum(host.waiting * lap.seconds for lap, host in self._unjudged) / seconds
        self._unjudged = []
        told_already = self._warned is not None and abs(waiting - self._warned) < MUCH
        if waiting < WARNED_FRACTION or told_already:
            return ""
        self._warned = waiting
        rate = steps * self._batch_size / seconds
        where = "" if process is None else f" on process {process}"
        possible = f"{rate / (1 - waiting):.0f}" if waiting < 0.999 else "far more"
        return (
            f"warning: the input pipeline{where} delivers {rate:.0f} images/s, the step could take "
            f"{possible}: training waits for data {100 * waiting:.0f} % of the time; "
            f"{self._advice(host)}"
        )

    def _advice(self, host: _Host) -> str:
        cores = f"{host.busy_cores:.1f} of {host.cores} CPU cores are busy"
        if host.busy_cores >= BUSY_FRACTION * host.cores:
            return f"{cores}: more cores a chip help, or smaller image files"
        threads = f"config.loader.num_threads (now {self._num_threads})"
        if host.busy_cores < IDLE_CORES:
            return (
                f"{cores}, so that images come late from their storage: raise {threads}, or copy "
                "them to a local disk"
            )
        return f"{cores}: raise config.loader.num_workers (now {self._num_workers}) or {threads}"


def _device_memory() -> dict[str, float]:
    """Bytes of the fullest device of this process, as far as the devices tell."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    names = {"device_memory_bytes": "bytes_in_use", "device_memory_peak_bytes": "peak_bytes_in_use"}
    return {
        name: max(told[key] for told in stats)
        for name, key in names.items()
        if all(key in told for told in stats)
    }


def _usage() -> tuple[float, float]:
    """CPU seconds of this process and its workers so far, and the time."""
    process = psutil.Process()
    seconds = 0.0
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):  # it ended in the meantime
            times = one.cpu_times()
            seconds += times.user + times.system
    return seconds, time.monotonic()


def _since(before: tuple[float, float]) -> tuple[float, float]:
    now = _usage()
    return now[0] - before[0], now[1] - before[1]


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
