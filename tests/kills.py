"""Kills runs at chosen moments, starts them again, and compares with one that nothing disturbed."""

import contextlib
import dataclasses
import json
import random
import re
import signal
import subprocess
import time

from commands import finish, metrics_of, result_of, start, write_config
from forked_main import free_address

# Log lines, checkpoints and epochs end at different steps, so that a run resumes in mid-window.
FIELDS = {
    "epochs": 10,
    "log_every_steps": 3,
    "checkpoint_every_steps": 5,
    "loader.num_threads": 2,
}
MOMENTS = ("any", "step", "save", "evaluation")
PATIENCE = 300.0  # seconds that a run is waited for
DEVICES = 8  # of all processes together
CONNECT_SECONDS = 30  # that a process waits for one which was killed before it came
BOUND = 60.0  # seconds in which processes end when another is killed


@dataclasses.dataclass
class Kills:
    """What happened to a run.

    Attributes:
      moments: of the kills.
      resumes: starts that went on from a checkpoint.
      redone: steps.
      unharmed: starts that were done before the kill.
      slowest_end: of a process whose neighbour was killed, seconds after that.
      differences: what is not as in the reference at the end.
    """

    moments: list[str] = dataclasses.field(default_factory=list)
    resumes: int = 0
    redone: int = 0
    unharmed: int = 0
    slowest_end: float = 0.0
    differences: list[str] = dataclasses.field(default_factory=list)


def prepare(folder, *, processes=1):
    """A config file on the inputs in `folder`, and a reference run; `folder` gets both."""
    config = write_config(folder, **FIELDS)
    _run_to_the_end(folder, _flags(config, folder / "reference"), processes)
    return config


def _flags(config, workdir, workers=0):
    return (
        f"--config={config}",
        f"--workdir={workdir}",
        f"--config.loader.num_workers={workers}",
    )


def _start(folder, flags, processes):
    """All processes of a run."""
    if processes > 1:
        flags += (
            f"--coordinator_address={free_address()}",
            f"--num_processes={processes}",
            f"--connect_seconds={CONNECT_SECONDS}",
        )
    return [
        start(
            *flags,
            *([f"--process_id={index}"] if processes > 1 else []),
            cache=folder / "cache",
            devices=DEVICES // processes,
        )
        for index in range(processes)
    ]


def _run_to_the_end(folder, flags, processes):
    """Stdout of the first process, which alone speaks."""
    told = [finish(process) for process in _start(folder, flags, processes)]
    for code, _, stderr in told:
        assert code == 0, stderr
    return told[0][1]


def _kill(run, victim):
    """Kills one process of a run, which ends the others.

    Returns:
      Stdout of the first process, whether the victim was done before, and the seconds that the
      others took to end.
    """
    run[victim].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    others = [process for process in run if process is not run[victim]]
    for process in others:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(BOUND)
    seconds = time.monotonic() - killed if others else 0.0
    alive = [process for process in others if process.poll() is None]
    for process in alive:
        process.kill()
    told = [finish(process) for process in run]
    assert not alive, f"alive {BOUND:g} s after process {victim} was killed: {told}"
    code, _, stderr = told[victim]
    assert code in (-signal.SIGKILL, 0), stderr
    for code, _, stderr in (told[run.index(process)] for process in others):
        lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == (code != 0), (code, stderr)
        # Gone, or not there in time, or all were done.
        assert code in (75, 2, 0), stderr
        assert "Traceback" not in stderr, stderr
    return told[0][1], told[victim][0] == 0, seconds


def _last_step(workdir):
    """Of the last log line, 0 without one."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    return 0


def _opened(workdir):
    """Tells one start's metrics.jsonl from another's."""
    with contextlib.suppress(OSError):
        return (workdir / "metrics.jsonl").stat().st_ino
    return None


def _wait(process, happened):
    """Until it happened or the process ended; returns whether the process is alive."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return False
        if happened():
            return True
        time.sleep(0.002)
    raise TimeoutError("the run does not get on")


def _is_saving(workdir):
    folder = workdir / "checkpoints"
    with contextlib.suppress(OSError):
        return any("tmp" in path.name for path in folder.iterdir())
    return False


def _is_evaluating(workdir, steps_per_epoch):
    """The log line of an epoch's last step is there, and that of its evaluation is not."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
        return last["step"] % steps_per_epoch == 0 and "train/loss" in last
    return False


def kill_and_resume(
    folder, config, workdir, *, moments, rng, steps_per_epoch=4, workers=0, processes=1
):
    """A run of which a process is killed at each of `moments`, and then left alone to its end.

    `workers` more make the batches of each process, those of the reference are made by threads.
    """
    kills = Kills()
    flags = _flags(config, workdir, workers)
    for moment in moments:
        reached, opened = _last_step(workdir), _opened(workdir)
        run = _start(folder, flags, processes)
        target = reached + rng.randint(1, 8)
        happened = {
            "any": lambda: True,
            "step": lambda target=target: _last_step(workdir) >= target,
            "save": lambda: _is_saving(workdir),
            "evaluation": lambda: _is_evaluating(workdir, steps_per_epoch),
        }[moment]
        if moment != "any":  # what is seen must be of this start, not of the one before
            _wait(run[0], lambda opened=opened: _opened(workdir) != opened)
        alive = _wait(run[0], happened)
        if alive:
            time.sleep(rng.uniform(0, 15) if moment == "any" else rng.uniform(0, 0.03))
        stdout, was_done, seconds = _kill(run, rng.randrange(processes))
        if was_done:
            kills.unharmed += 1
            break
        kills.moments.append(moment)
        kills.slowest_end = max(kills.slowest_end, seconds)
        _count_resume(kills, stdout, reached)
    before = _last_step(workdir)
    _count_resume(kills, _run_to_the_end(folder, flags, processes), before)
    reference = folder / "reference"
    if metrics_of(workdir) != metrics_of(reference):
        kills.differences.append("metrics.jsonl")
    expected, found = result_of(reference), result_of(workdir)
    kills.differences += [name for name in expected if found.get(name) != expected[name]]
    return kills


def _count_resume(kills, stdout, reached):
    resumed = re.search(r"resuming .* at step (\d+) of", stdout)
    if resumed:
        kills.resumes += 1
        kills.redone += max(0, reached - int(resumed[1]))


def random_moments(rng, count):
    """Moments of `count` kills."""
    return [rng.choice(MOMENTS) for _ in range(count)]


def stress(folder, *, kills, per_run, seed, processes=1):
    """`kills` kills in runs of at most `per_run` each, one after the other; yields each run's.

    Every other run has processes of their own for its batches.
    """
    rng = random.Random(seed)
    config = prepare(folder, processes=processes)
    done = number = 0
    while done < kills:
        number += 1
        outcome = kill_and_resume(
            folder,
            config,
            folder / f"run{number}",
            moments=random_moments(rng, min(per_run, kills - done)),
            rng=rng,
            workers=number % 2,
            processes=processes,
        )
        done += len(outcome.moments)
        yield outcome
