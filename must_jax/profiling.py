"""A trace of some steps by `jax.profiler`."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax

from must_jax.errors import UserError, first_line

FOLDER = "profile"  # under the workdir
SKIPPED, TRACED = 10, 3  # steps, where the flag names none


@dataclasses.dataclass(frozen=True)
class Steps:
    """Steps of the whole run, counted from 1, both included."""

    first: int
    last: int


def parse_steps(text: str) -> Steps | None:
    """The steps of `--profile=FROM:TO`; None for a bare `--profile`, which names none.

    Raises:
      UserError: it is neither.
    """
    if text == "true":
        return None
    told = re.fullmatch(r"([0-9]{1,18}):([0-9]{1,18})", text)
    if not told or not 1 <= int(told[1]) <= int(told[2]):
        raise UserError(
            f"--profile={text} is no range of steps; it must be FROM:TO, counted from 1 and both "
            "included, such as --profile=10:13"
        )
    return Steps(int(told[1]), int(told[2]))


def choose_steps(text: str, *, first_step: int, num_steps: int) -> Steps | None:
    """The steps to trace: those that the flag names, or a few after this start's first ones.

    A run that goes on traces what is left of them.

    Args:
      text: the flag's value.
      first_step: steps that were done before this start.
      num_steps: of the whole run.

    Returns:
      None where earlier starts have done all of them.

    Raises:
      UserError: the flag is malformed, or the run does not come to those steps.
    """
    steps = parse_steps(text)
    if steps is None:
        last = min(first_step + SKIPPED + TRACED, num_steps)
        steps = Steps(max(last - TRACED, first_step) + 1, last)
    if steps.last > num_steps:
        raise UserError(f"--profile={text} names steps past the run's last one, {num_steps}")
    steps = Steps(max(steps.first, first_step + 1), steps.last)
    return steps if steps.first <= steps.last else None


@contextlib.contextmanager
def traced(
    run_step: Callable[..., Any],
    *,
    steps: Steps | None,
    workdir: str,
    first_step: int,
    paused: Callable[[], contextlib.AbstractContextManager],
    say: Callable[[str], None],
) -> Iterator[Callable[..., Any]]:
    """`run_step`, or one that has `jax.profiler` watch what goes on during `steps`.

    From the dispatch of the first of them until the device is done with the last, all that the
    process does is in the trace, the input pipeline's threads included.

    Args:
      run_step: called once a step.
      steps: None for no trace.
      workdir: gets the trace, each process of several a folder of its own.
      first_step: steps that were done before this start.
      paused: keeps what is done inside out of the times that are logged.
      say: is told where the trace is.

    Raises:
      UserError: the trace would follow a link out of `workdir`.
    """
    if steps is None:
        yield run_step
        return
    folder = os.path.join(workdir, FOLDER)
    if jax.process_count() > 1:
        # Files are named after the host alone, which several processes may share.
        folder = os.path.join(folder, f"process_{jax.process_index()}")
    _refuse_links(workdir, folder)
    step, running = first_step, False

    def stop() -> None:
        nonlocal running
        running = False
        try:
            jax.profiler.stop_trace()
        except (OSError, RuntimeError) as error:  # a full disk, most often
            say(f"the trace of steps {steps.first} to {step} was not written: {first_line(error)}")
            return
        say(f"trace of steps {steps.first} to {step} is in {folder}; docs/watching.md opens it")

    def run(*args: Any) -> Any:
        nonlocal step, running
        step += 1
        if step == steps.first:
            with paused():
                jax.profiler.start_trace(folder)
            running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            results = run_step(*args)
        if step == steps.last:
            jax.block_until_ready(results)
            with paused():
                stop()
        return results

    try:
        yield run
    finally:
        if running:
            stop()


def _refuse_links(workdir: str, folder: str) -> None:
    deepest = os.path.join(folder, "plugins", "profile")  # as TensorBoard looks for it
    inside = os.path.join(os.path.realpath(workdir), os.path.relpath(deepest, workdir))
    if os.path.realpath(deepest) != inside:
        raise UserError(f"{folder} is a link, or holds one; move it away to trace steps")
