"""What a process that makes batches does with signals."""

import signal
import subprocess
import sys

import pytest

_BEGIN = """
import os, signal, sys, time
from must_jax.data import patience, worker

signal.signal(signal.SIGHUP, signal.SIG_IGN if "nohup" in sys.argv else signal.SIG_DFL)
worker.begin({})
for number in map(int, sys.argv[1].split(",")):
    os.kill(os.getpid(), number)
time.sleep(0.2)
print(patience._is_over.is_set())
"""


def _is_over_after(*numbers, more=()):
    told = ",".join(str(int(number)) for number in numbers)
    command = [sys.executable, "-c", _BEGIN, told, *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_its_patience_and_nothing_else(number):
    assert _is_over_after(number) == "True\n"


def test_under_nohup_it_takes_no_notice_of_the_terminals_end():
    assert _is_over_after(signal.SIGHUP, more=["nohup"]) == "False\n"
    assert _is_over_after(signal.SIGHUP, signal.SIGTERM, more=["nohup"]) == "True\n"


def test_any_number_of_signals_may_come_at_once():
    assert _is_over_after(*[signal.SIGTERM, signal.SIGINT] * 2000) == "True\n"
