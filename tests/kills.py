"""Kills runs at chosen moments, starts them again, and compares with one that nothing disturbed."""

import contextlib
import dataclasses
import json
import random
import re
import signal
import time

from commands import finish, metrics_of, result_of, start, write_config

# Log lines, checkpoints and epochs end at different steps, so that a run resumes in mid-window.
FIELDS = {
    "epochs": 10,
    "log_every_steps": 3,
    "checkpoint_every_steps": 5,
    "loader.num_threads": 2,
}
MOMENTS = ("any", "step", "save", "evaluation")
PATIENCE = 300.0  # seconds that a run is waited for


@dataclasses.dataclass
class Kills:
    """What happened to a run: kills by moment, steps done again, and what differs at the end."""

    moments: list[str] = dataclasses.field(default_factory=list)
    resumes: int = 0
    redone: int = 0
    unharmed: int = 0
    differences: list[str] = dataclasses.field(default_factory=list)


def prepare(folder):
    """A config file on the inputs in `folder`, and a reference run; `folder` gets both."""
    config = write_config(folder, **FIELDS)
    code, _, stderr = finish(start(*_flags(config, folder / "reference"), cache=folder / "cache"))
    assert code == 0, stderr
    return config


def _flags(config, workdir, workers=0):
    return (
        f"--config={config}",
        f"--workdir={workdir}",
        f"--config.loader.num_workers={workers}",
    )


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


def kill_and_resume(folder, config, workdir, *, moments, rng, steps_per_epoch=4, workers=0):
    """A run that is killed once at each of `moments`, and then left alone to its end.

    `workers` processes make its batches, those of the reference are made by threads.
    """
    kills = Kills()
    flags = _flags(config, workdir, workers)
    for moment in moments:
        reached, opened = _last_step(workdir), _opened(workdir)
        process = start(*flags, cache=folder / "cache")
        target = reached + rng.randint(1, 8)
        happened = {
            "any": lambda: True,
            "step": lambda target=target: _last_step(workdir) >= target,
            "save": lambda: _is_saving(workdir),
            "evaluation": lambda: _is_evaluating(workdir, steps_per_epoch),
        }[moment]
        if moment != "any":  # what is seen must be of this start, not of the one before
            _wait(process, lambda opened=opened: _opened(workdir) != opened)
        alive = _wait(process, happened)
        if alive:
            time.sleep(rng.uniform(0, 15) if moment == "any" else rng.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        _, stdout, stderr = finish(process)
        if process.returncode != -signal.SIGKILL:
            assert process.returncode == 0, stderr
            kills.unharmed += 1  # it was done before the kill
            break
        kills.moments.append(moment)
        _count_resume(kills, stdout, reached)
    before = _last_step(workdir)
    code, stdout, stderr = finish(start(*flags, cache=folder / "cache"))
    assert code == 0, stderr
    _count_resume(kills, stdout, before)
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


def stress(folder, *, kills, per_run, seed):
    """`kills` kills in runs of at most `per_run` each, one after the other; yields each run's.

    Every other run has a process of its own for its batches.
    """
    rng = random.Random(seed)
    config = prepare(folder)
    done = number = 0
    while done < kills:
        number += 1
        moments = random_moments(rng, min(per_run, kills - done))
        workdir = folder / f"run{number}"
        outcome = kill_and_resume(
            folder, config, workdir, moments=moments, rng=rng, workers=number % 2
        )
        done += len(outcome.moments)
        yield outcome
