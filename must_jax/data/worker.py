"""What a process that makes batches does beside: it leaves signals to the one that started it."""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import threading
from collections.abc import Mapping

from must_jax.data import patience


def begin(known: Mapping[str, str], index: int = 0, count: int = 1) -> None:
    """Called in each of `count` workers, before it makes anything.

    It is told what the run has read, as `patience` wants to know.

    A terminal's Ctrl-C and a service manager's SIGTERM go to all processes of a group. The run
    finishes its step then, for which it needs batches, and ends its workers itself; one that was
    killed can't, and they would wait for it for ever. Here they but end waiting for what can't be
    read.
    """
    patience.know(known)
    told: queue.SimpleQueue[int] = queue.SimpleQueue()
    threading.Thread(target=_give_up_when, args=(told,), daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            # A handler may come between any two instructions of another: it takes no lock.
            signal.signal(number, lambda number, frame: told.put(number))
    parent = multiprocessing.parent_process()
    if parent is not None:
        ends = functools.partial(_end_with, parent.sentinel)
        threading.Thread(target=ends, daemon=True).start()


def give_up() -> None:
    """Ends the patience of this process and of its workers; other children of it end."""
    patience.give_up()
    for worker in multiprocessing.active_children():
        worker.terminate()  # which `begin` takes for this, and ends one that has only just begun


def _give_up_when(told: queue.SimpleQueue[int]) -> None:
    told.get()
    patience.give_up()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
