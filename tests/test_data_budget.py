"""Budget: no more units at a time than there are, and a turn for all who wait."""

import subprocess
import sys
import threading
import time

import pytest

from must_jax.data.budget import Budget


def _run(*works):
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return not any(thread.is_alive() for thread in threads)


def test_no_more_are_taken_than_there_are():
    budget = Budget(10)
    held, most = [], []

    def work(units):
        for _ in range(20):
            with budget.taken(units):
                held.append(min(units, 10))
                most.append(sum(held))
                time.sleep(0.0005)
                held.remove(min(units, 10))

    # More than all are all.
    assert _run(*[lambda units=units: work(units) for units in (0, 1, 3, 4, 5, 7, 10, 99)])
    assert max(most) <= 10
    assert any(taken not in (0, 1, 3, 4, 5, 7, 10) for taken in most)  # some were held together


def test_who_waits_for_all_is_not_passed_for_ever():
    budget = Budget(4)
    done = threading.Event()
    started = threading.Barrier(9)

    def few():
        started.wait()
        while not done.is_set():
            with budget.taken(1):
                time.sleep(0.001)

    def all_of_them():
        started.wait()
        for _ in range(5):
            with budget.taken(4):
                pass
        done.set()

    assert _run(all_of_them, *[few] * 8)


def test_units_come_back_after_an_error():
    budget = Budget(3)
    with pytest.raises(KeyError), budget.taken(3):
        raise KeyError
    assert _run(lambda: budget.taken(3).__enter__())


def test_a_child_process_has_all_units():
    code = """
import os, threading
from must_jax.data.budget import Budget
budget = Budget(2)
held = budget.taken(1)
held.__enter__()
waiting = budget.taken(2)
threading.Thread(target=waiting.__enter__, daemon=True).start()
while not budget._turn.locked():
    pass
child = os.fork()
if not child:
    with budget.taken(2):
        os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("7\n", "")
