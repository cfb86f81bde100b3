"""Which steps are traced, and that a trace of just those is written."""

import contextlib
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData

from must_jax.errors import UserError
from must_jax.profiling import Steps, choose_steps, traced


@pytest.mark.parametrize(
    ("text", "first_step", "num_steps", "steps"),
    [
        ("10:13", 0, 100, Steps(10, 13)),
        ("1:1", 0, 100, Steps(1, 1)),
        ("100:100", 99, 100, Steps(100, 100)),
        ("true", 0, 100, Steps(11, 13)),
        ("true", 50, 100, Steps(61, 63)),  # resumed
        ("true", 0, 8, Steps(6, 8)),
        ("true", 0, 2, Steps(1, 2)),
        ("true", 99, 100, Steps(100, 100)),
        # A run that goes on, by the same command.
        ("10:13", 10, 100, Steps(11, 13)),
        ("10:13", 13, 100, None),
        ("10:13", 100, 100, None),
        ("true", 100, 100, None),
    ],
)
def test_steps_are_those_named_or_a_few_after_the_first_ones(text, first_step, num_steps, steps):
    assert choose_steps(text, first_step=first_step, num_steps=num_steps) == steps


@pytest.mark.parametrize("text", ["", "10", "10:", "13:10", "0:3", "a:b", "1:2:3", "-1:3", "1.5:3"])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(UserError, match="FROM:TO"):
        choose_steps(text, first_step=0, num_steps=100)


@pytest.mark.parametrize("first_step", [0, 100])
def test_steps_that_are_not_to_be_run_are_refused(first_step):
    with pytest.raises(UserError, match="99:101 names steps past the run's last one, 100"):
        choose_steps("99:101", first_step=first_step, num_steps=100)


def steps_in(folder):
    """The step numbers of the annotations in the trace, which is the only one in the folder."""
    (path,) = folder.rglob("*.xplane.pb")
    numbers = set()
    for plane in ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                numbers |= {int(v) for k, v in event.stats if k == "step_num"}
    return numbers


@pytest.fixture
def run_step():
    compiled = jax.jit(lambda x: (x + 1, {"loss": x.sum()}))
    return lambda state: compiled(state)


def run(run_step, workdir, steps, *, first_step, num_steps, failing_at=None):
    told, paused = [], []

    @contextlib.contextmanager
    def pausing():
        paused.append(True)
        yield

    with traced(
        run_step,
        steps=steps,
        workdir=str(workdir),
        first_step=first_step,
        paused=pausing,
        say=told.append,
    ) as step:
        state = jnp.zeros(4)
        for i in range(first_step, num_steps):
            if i == failing_at:
                raise InterruptedError
            state, _ = step(state)
    assert float(state[0]) == num_steps - first_step
    return told, len(paused)


def test_the_steps_asked_for_are_traced(run_step, tmp_path):
    told, paused = run(run_step, tmp_path, Steps(5, 6), first_step=2, num_steps=9)
    assert steps_in(tmp_path / "profile") == {5, 6}
    assert told == [f"trace of steps 5 to 6 is in {tmp_path}/profile; docs/watching.md opens it"]
    assert paused == 2


def test_without_steps_nothing_is_written(run_step, tmp_path):
    assert run(run_step, tmp_path, None, first_step=0, num_steps=3) == ([], 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["profile", "profile/plugins", "profile/plugins/profile"])
def test_a_trace_follows_no_link(run_step, tmp_path, name):
    for folder in ("real", "elsewhere"):
        (tmp_path / folder).mkdir()
    workdir = tmp_path / "run"
    workdir.symlink_to(tmp_path / "real")  # the user's own choice
    (workdir / name).parent.mkdir(parents=True, exist_ok=True)
    (workdir / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"{workdir}/profile is a link, or holds one; move it"):
        run(run_step, workdir, Steps(1, 2), first_step=0, num_steps=3)
    assert not list((tmp_path / "elsewhere").iterdir())
    (workdir / name).unlink()
    run(run_step, workdir, Steps(1, 2), first_step=0, num_steps=3)
    assert steps_in(tmp_path / "real/profile") == {1, 2}


def test_a_run_that_ends_early_leaves_the_trace_of_what_it_did(run_step, tmp_path):
    with pytest.raises(InterruptedError):
        run(run_step, tmp_path, Steps(2, 9), first_step=0, num_steps=9, failing_at=4)
    assert steps_in(tmp_path / "profile") == {2, 3, 4}


def test_a_trace_for_which_the_disk_has_no_room_ends_no_run(tmp_path):
    """Alone, for JAX counts a trace that was not written as one that goes on."""
    code = (
        "import pathlib, sys, jax\n"
        f"sys.path.append({str(pathlib.Path(__file__).parent)!r})\n"
        "import test_profiling\n"
        "from full_disks import files_up_to\n"
        "step = lambda state: (state + 1, {})\n"
        "with files_up_to(100):\n"
        "    told, _ = test_profiling.run(\n"
        "        step, sys.argv[1], test_profiling.Steps(2, 3), first_step=0, num_steps=5\n"
        "    )\n"
        "sys.exit('; '.join(told))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=100
    )
    assert done.stderr.splitlines()[-1].startswith("the trace of steps 2 to 3 was not written: ")
    assert "File too large" in done.stderr
