"""The time that the device waits for data, against runs in which every moment is known."""

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from must_jax.step_timer import StepTimer

STEPS_AHEAD = 2
TIMES = st.integers(0, 9)


class Run:
    """A loop, its input pipeline and its device in whole ticks of a clock of their own.

    The timer learns when the device is done with a step as from a real one; `asked` and `busy`
    keep which ticks the loop spent asking for a batch and the device computing.
    """

    def __init__(self):
        self.now = 0
        self.done = []
        self.asked, self.busy, self.paused = set(), set(), set()
        self.timer = StepTimer(clock=lambda: float(self.now), done_at=float)

    def pass_to(self, tick, *during):
        for ticks in during:
            ticks.update(range(self.now, tick))
        self.now = max(self.now, tick)

    def batches(self, makings):
        """Made one after the other, each in so many ticks, whatever the loop does."""
        for ready in itertools.accumulate(makings):
            self.pass_to(ready, self.asked)
            yield ready

    def dispatch(self, seconds):
        begin = max([self.now, *self.done[-1:]])
        self.done.append(begin + seconds)
        self.busy.update(range(begin, begin + seconds))
        self.timer.dispatched(self.done[-1])
        if len(self.done) > STEPS_AHEAD:
            self.pass_to(self.done[-1 - STEPS_AHEAD])

    def drain(self):
        self.pass_to(self.done[-1])

    def pause(self, ticks):
        self.drain()
        with self.timer.paused():
            self.pass_to(self.now + ticks, self.paused)


def ticks_of(run, start, end):
    """Ticks without the pauses, and those of them in which the device waited for data."""
    ticks = set(range(start, end)) - run.paused
    return len(ticks), len((run.asked - run.busy) & ticks)


@given(st.lists(st.tuples(TIMES, TIMES, TIMES, TIMES, st.booleans()), min_size=2, max_size=30))
def test_waiting_is_the_time_that_the_device_idles_while_the_loop_asks(steps):
    run = Run()
    laps, start = [], None
    for i, _ in enumerate(run.timer.timed(run.batches([making for making, *_ in steps]))):
        _, computing, elsewhere, pause, ends = steps[i]
        run.dispatch(computing)
        run.pass_to(run.now + elsewhere)
        if pause > 6:
            run.pause(pause)
        if ends or i == len(steps) - 1:
            run.drain()
            lap = run.timer.lap()
            laps.append((lap, run.done[0] if start is None else start, run.now))
            start = run.now
    taken = sum(lap.steps for lap, *_ in laps if lap)
    assert taken == len(steps) - 1
    for lap, begin, end in laps:
        if lap is not None:
            assert (lap.seconds, lap.waiting) == ticks_of(run, begin, end)


def test_a_slow_pipeline_is_told_exactly():
    """Batches every 10 ticks, steps of 4: six of ten ticks are waited."""
    run = Run()
    for _ in run.timer.timed(run.batches([10] * 21)):
        run.dispatch(4)
    run.drain()
    lap = run.timer.lap()
    assert (lap.steps, lap.seconds, lap.waiting) == (20, 200, 120)


def test_a_batch_that_comes_while_the_device_computes_costs_nothing():
    """Batches every 4 ticks, steps of 10: the loop asks all the time and the device never waits."""
    run = Run()
    for _ in run.timer.timed(run.batches([4] * 21)):
        run.dispatch(10)
    assert run.asked
    run.drain()
    lap = run.timer.lap()
    assert (lap.steps, lap.seconds, lap.waiting) == (20, 200, 0)


class Device:
    """Runs steps that only take time, one after the other, and returns what can be waited for."""

    def __init__(self):
        self.done = 0.0

    def run(self, seconds):
        self.done = max(self.done, time.perf_counter()) + seconds
        return Results(self.done)


class Results:
    def __init__(self, done):
        self.done = done

    def block_until_ready(self):
        time.sleep(max(0.0, self.done - time.perf_counter()))
        return self


@pytest.mark.parametrize(("making", "computing"), [(0.06, 0.02), (0.01, 0.04)])
def test_the_thread_that_watches_tells_the_same_of_real_time(making, computing):
    def batches():
        ready = time.perf_counter()
        for _ in range(16):
            ready += making
            time.sleep(max(0.0, ready - time.perf_counter()))
            yield None

    timer, device, pending = StepTimer(), Device(), []
    for _ in timer.timed(batches()):
        pending.append(device.run(computing))
        timer.dispatched(pending[-1])
        if len(pending) > STEPS_AHEAD:
            pending[-1 - STEPS_AHEAD].block_until_ready()
    pending[-1].block_until_ready()
    lap = timer.lap()
    # Sleeping and waking up take a few milliseconds more than asked, on a busy machine.
    assert lap.waiting / lap.seconds == pytest.approx(max(0, 1 - computing / making), abs=0.12)
