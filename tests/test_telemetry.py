"""What log lines tell of the machine, and when they warn, from laps that are given."""

import types

import jax
import pytest

from must_jax import telemetry
from must_jax.chips import CHIPS, known_chip
from must_jax.planning.topology import H100
from must_jax.step_timer import Lap
from must_jax.telemetry import Telemetry

GIB = 2**30


class Timer:
    """Tells laps that were made up."""

    def __init__(self, laps):
        self.laps = iter(laps)

    def dispatched(self, results):
        pass

    def lap(self):
        return next(self.laps)


def watch(monkeypatch, laps, *, busy_cores=0.0, cores=4, num_workers=0):
    """The performances of laps, a process keeping `busy_cores` of `cores` busy in each of them."""
    usage = iter([(busy_cores * i, float(i)) for i in range(2 * len(laps) + 2) for _ in "ab"])
    monkeypatch.setattr(telemetry, "_usage", lambda: next(usage))
    monkeypatch.setattr(telemetry, "_num_cores", lambda: cores)
    watched = Telemetry(
        batch_size=64,
        flops_per_image=1e12,
        num_threads=16,
        num_workers=num_workers,
        timer=Timer(laps),
    )
    watched.dispatched(None)
    next(usage)
    return [watched.lap() for _ in laps]


def lap(waiting, *, steps=20, seconds=10.0):
    return Lap(steps=steps, seconds=seconds, waiting=waiting * seconds)


def device(kind="cpu", stats=None):
    return types.SimpleNamespace(device_kind=kind, memory_stats=lambda: stats)


def use_devices(monkeypatch, devices):
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    monkeypatch.setattr(jax, "device_count", lambda: len(devices))


def test_on_a_cpu_what_is_not_known_is_left_out(monkeypatch):
    use_devices(monkeypatch, [device()])
    first, second = watch(monkeypatch, [None, lap(0.01)])
    assert first is None
    memory = second.fields.pop("perf/host_memory_bytes")
    assert 50e6 < memory < 50e9
    # 20 steps of 64 images in 10 seconds.
    assert second.fields == {
        "perf/images_per_second": 128,
        "perf/images_per_second_per_chip": 128,
        "perf/step_seconds": 0.5,
        "perf/data_wait_fraction": pytest.approx(0.01),
    }
    assert second.told == ("128 images/s",)
    assert not second.warning


def test_on_known_chips_utilisation_and_the_fullest_memory_are_told(monkeypatch):
    full = {"bytes_in_use": 6 * GIB, "peak_bytes_in_use": 12 * GIB, "bytes_limit": 16 * GIB}
    less = {"bytes_in_use": 7 * GIB, "peak_bytes_in_use": 8 * GIB, "bytes_limit": 16 * GIB}
    use_devices(monkeypatch, [device("TPU v5 lite", full), device("TPU v5 lite", less)])
    (performance,) = watch(monkeypatch, [lap(0.03)])
    fields = performance.fields
    assert fields["perf/images_per_second_per_chip"] == 64
    # 64e12 FLOP/s a chip, of the 197e12 that are published for a v5e.
    assert fields["perf/mfu"] == pytest.approx(64 / 197)
    assert fields["perf/device_memory_bytes"] == 7 * GIB
    assert fields["perf/device_memory_peak_bytes"] == 12 * GIB
    assert performance.told == (
        "128 images/s (64 a chip)",
        "MFU 32.5 %",
        "waiting for data 3 %",
        "memory 12.0 GiB",
    )


def test_chips_are_known_by_what_jax_calls_them():
    assert known_chip("cpu") is None
    assert known_chip("NVIDIA H100 PCIe") is None
    (name,) = [line for line in H100.splitlines() if "device_description_str" in line]
    assert known_chip(name.split('"')[1]) is CHIPS["h100"]


@pytest.mark.parametrize(
    ("busy_cores", "advice"),
    [
        (3.5, "3.5 of 4 CPU cores are busy: more cores a chip help, or smaller image files"),
        (
            1.5,
            "1.5 of 4 CPU cores are busy: raise config.loader.num_workers (now 0) or "
            "config.loader.num_threads (now 16)",
        ),
        (
            0.2,
            "0.2 of 4 CPU cores are busy, so that images come late from their storage: raise "
            "config.loader.num_threads (now 16), or copy them to a local disk",
        ),
    ],
)
def test_a_pipeline_that_falls_short_is_warned_of_with_its_cure(monkeypatch, busy_cores, advice):
    (performance,) = watch(monkeypatch, [lap(0.75)], busy_cores=busy_cores)
    # 128 images/s in all, and four times that where only a quarter of the time is the step's.
    assert performance.warning == (
        "warning: the input pipeline delivers 128 images/s, the step could take 512: training "
        f"waits for data 75 % of the time; {advice}"
    )


def warned(monkeypatch, laps):
    return [bool(p and p.warning) for p in watch(monkeypatch, laps)]


def test_one_warning_is_enough_unless_much_changes(monkeypatch):
    shares = [0.3, 0.3, 0.5, 0.04, 0.6, 0.6, 0.1, 0.0]
    assert warned(monkeypatch, [lap(share) for share in shares]) == [
        *(True, False, False, False),
        *(True, False, True, False),
    ]


def test_few_steps_are_no_ground_for_a_warning(monkeypatch):
    laps = [None, *(lap(0.5, steps=4) for _ in range(6))]
    assert warned(monkeypatch, laps) == [False, False, False, True, False, False, False]


def test_a_step_that_costs_nothing_could_take_far_more(monkeypatch):
    (performance,) = watch(monkeypatch, [lap(1.0)])
    assert "the step could take far more: training waits for data 100 %" in performance.warning


def test_the_slowest_process_is_named(monkeypatch):
    """Of three processes with their own shares, as each tells the others."""
    monkeypatch.setattr(
        telemetry.distributed,
        "gather",
        lambda own: [own, {**own, "waiting": 0.5, "busy_cores": 3.9}, own],
    )
    (performance,) = watch(monkeypatch, [lap(0.1)])
    assert performance.fields["perf/data_wait_fraction"] == 0.5
    assert "the input pipeline on process 1 delivers" in performance.warning
    assert "waits for data 50 % of the time; 3.9 of 4 CPU cores are busy" in performance.warning
