"""What a process prints goes to a full disk, or to nobody: it ends as it would."""

import signal
import subprocess
import sys

import pytest
from forked_main import free_address

from must_jax.data import patience
from must_jax.errors import flush_output

pytestmark = pytest.mark.multiprocess

# Of Linux: every write to it fails, as on a disk that is full.
FULL = "/dev/full"
ASKED = """
import os, signal, time
from must_jax.preemption import Preemption
with Preemption(grace_seconds=0.3).listening():
    for _ in range({signals}):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
    time.sleep(60)
"""


def run(code, **streams):
    return subprocess.run([sys.executable, "-c", code], timeout=50, text=True, **streams)


def test_the_grace_period_ends_where_nothing_can_be_told():
    with open(FULL, "w") as full:
        assert run(ASKED.format(signals=1), stderr=full).returncode == 1


def test_being_asked_again_and_again_is_being_asked_once():
    done = run(ASKED.format(signals=3), stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_bad_input_has_its_exit_code_where_it_can_not_be_told():
    code = "import sys; sys.argv = ['x', '--config=none.py']; from must_jax import main; main.run()"
    with open(FULL, "w") as full:
        assert run(code, stderr=full).returncode == 2


def test_a_pipe_that_nobody_reads_changes_no_exit_code():
    code = (
        "from absl import app\\n"
        "from must_jax import main\\n"
        "from must_jax.progress import say\\n"
        "main.parse_flags = app.parse_flags_with_usage\\n"
        "main.run(lambda argv: [say('step') for _ in range(9)] and None)\\n"
    ).replace("\\n", "\n")
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(50) == 0


def test_a_process_that_lost_another_ends_where_nothing_can_be_told():
    code = (
        "import sys, time\n"
        "from must_jax import distributed\n"
        "address, process = sys.argv[1], int(sys.argv[2])\n"
        "distributed.initialize(\n"
        "    coordinator_address=address, num_processes=2, process_id=process\n"
        ")\n"
        "print('met', flush=True)\n"
        "time.sleep(60)"
    )
    address = free_address()
    with open(FULL, "w") as full:
        first, second = (
            subprocess.Popen(
                [sys.executable, "-c", code, address, str(i)], stdout=subprocess.PIPE, stderr=full
            )
            for i in range(2)
        )
        assert {process.stdout.readline() for process in (first, second)} == {b"met\n"}
        second.send_signal(signal.SIGKILL)
        assert first.wait(50) == 75
        assert second.wait(50) == -signal.SIGKILL


def test_an_outage_that_can_not_be_told_is_waited_out(monkeypatch):
    tries = []

    def read():
        tries.append(1)
        if len(tries) < 3:
            raise TimeoutError
        return "data"

    monkeypatch.setattr(patience, "_WAITS", (0, 0))
    monkeypatch.setattr(patience, "_last_told", {})
    with open(FULL, "w") as full, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", full)
        assert patience.patiently("memory://b/x", read) == "data"
        flush_output()  # or what is left fails as the file is closed
