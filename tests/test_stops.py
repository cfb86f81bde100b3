"""Runs that are asked to stop: they save, in time, and go on later."""

import functools
import os
import signal
import subprocess
import sys
import time

import pytest
from commands import finish, write_config
from forked_main import free_address
from long_run import LONG, assert_same, begin, has_logged, wait_for

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]

# These tests may be under nohup themselves.
_HEAR = functools.partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="module")
def config(inputs):
    return write_config(inputs, **LONG)


# As a terminal's Ctrl-C and its end do, and a service manager's SIGTERM.
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_group_leaves_the_workers_to_the_run(config, undisturbed, tmp_path, number):
    # One process that makes batches is slower than the steps: the run mostly waits for it.
    flags = ("--config.loader.num_workers=1", "--config.loader.num_threads=1")
    process = begin(config, tmp_path / "run", *flags, start_new_session=True, preexec_fn=_HEAR)
    wait_for(process, has_logged(tmp_path / "run", 21))
    os.killpg(process.pid, number)
    code, stdout, stderr = finish(process)
    assert code == 75, stderr
    assert stdout.splitlines()[-1].startswith("asked to stop: saved at step ")
    # Python's own tracker of resources ends with the terminal, and it is told where there is one.
    assert not stderr or number == signal.SIGHUP
    code, _, stderr = finish(begin(config, tmp_path / "run", *flags))
    assert code == 0, stderr
    assert_same(tmp_path / "run", undisturbed)


@pytest.mark.parametrize(
    "numbers", [[signal.SIGTERM], [signal.SIGINT], [signal.SIGHUP], [signal.SIGTERM, signal.SIGINT]]
)
def test_asked_to_stop_a_run_saves_and_goes_on_later(config, undisturbed, tmp_path, numbers):
    process = begin(config, tmp_path / "run", preexec_fn=_HEAR)
    wait_for(process, has_logged(tmp_path / "run", 21))
    asked = time.monotonic()
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.02)
    code, stdout, stderr = finish(process)
    assert code == 75, stderr
    assert time.monotonic() - asked < 25
    assert stdout.splitlines()[-1].startswith("asked to stop: saved at step ")
    assert not stderr
    step = int(stdout.splitlines()[-1].split()[6])
    assert 21 <= step < 240
    assert (tmp_path / "run" / "checkpoints" / str(step)).is_dir()
    code, stdout, stderr = finish(begin(config, tmp_path / "run"))
    assert code == 0, stderr
    assert f"at step {step} of 240" in stdout
    assert_same(tmp_path / "run", undisturbed)


def test_under_nohup_the_end_of_the_terminal_is_none_of_the_run(config, undisturbed, tmp_path):
    ignore = functools.partial(signal.signal, signal.SIGHUP, signal.SIG_IGN)
    process = begin(config, tmp_path / "run", preexec_fn=ignore)
    wait_for(process, has_logged(tmp_path / "run", 21))
    process.send_signal(signal.SIGHUP)
    code, _, stderr = finish(process)
    assert code == 0, stderr
    assert_same(tmp_path / "run", undisturbed)


def test_a_workdir_in_use_is_waited_for_and_then_refused(config, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    first = begin(config, workdir)
    wait_for(first, has_logged(workdir, 21))
    first.send_signal(signal.SIGSTOP)  # or it might end before others begin
    (workdir / "run.lock").chmod(0o444)  # as it is to another user
    second = begin(config, workdir, "--config.grace_seconds=1", bound_by_modes=True)
    code, stdout, stderr = finish(second)
    assert code == 2
    in_use = f"{workdir} is in use by process {first.pid} on "
    assert stdout.startswith(in_use)
    assert stderr.startswith(f"error: {in_use}")
    assert len(stderr.splitlines()) == 1

    def begin_and_wait():
        waiting = begin(config, workdir)
        line = ""
        while not line.startswith(in_use):
            line = waiting.stdout.readline()
            assert line
        return waiting

    second = begin_and_wait()
    second.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    code, _, stderr = finish(second)
    assert time.monotonic() - asked < 10
    assert code == 75
    assert stderr.startswith(f"error: asked to stop while {workdir} was in use by process ")
    second = begin_and_wait()
    first.send_signal(signal.SIGTERM)
    first.send_signal(signal.SIGCONT)
    assert finish(first)[0] == 75
    code, stdout, stderr = finish(second)
    assert code == 0, stderr
    assert f"resuming {workdir} at step " in stdout
    assert_same(workdir, undisturbed)


def test_what_is_not_done_in_the_grace_period_ends_with_a_word():
    code = (
        "import os, signal, time\nfrom must_jax.preemption import Preemption\n"
        "with Preemption(grace_seconds=0.2).listening():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(60)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == 1
    assert done.stderr.startswith("error: asked to stop, and not done in 0.2 s (config.grace_sec")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("asked", [0, 1])
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_the_grace_period_of_several_processes_begins_for_all_when_one_is_asked(asked, number):
    code = (
        "import os, signal, sys, time\n"
        "from must_jax import distributed, preemption\n"
        "address, process = sys.argv[1], int(sys.argv[2])\n"
        "distributed.initialize(\n"
        "    coordinator_address=address, num_processes=2, process_id=process\n"
        ")\n"
        "with preemption.Preemption(grace_seconds=3).listening():\n"
        "    distributed.gather(None)\n"  # both listen
        f"    if process == {asked}:\n        os.kill(os.getpid(), signal.{number})\n"
        "    time.sleep(60)"
    )
    address = free_address()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, address, str(i)], stderr=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    for process in processes:
        _, stderr = process.communicate(timeout=50)
        assert "error: asked to stop, and not done in 3 s" in stderr
        assert process.returncode == 1, stderr
