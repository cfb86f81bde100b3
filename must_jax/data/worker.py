"""What a process that makes batches does beside: it leaves signals to the one that started it."""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.connection
import os
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
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: patience.give_up())
    parent = multiprocessing.parent_process()
    if parent is not None:
        ends = functools.partial(_end_with, parent.sentinel)
        threading.Thread(target=ends, daemon=True).start()


def give_up() -> None:
    """Ends the patience of this process and of its workers."""
    patience.give_up()
    for worker in multiprocessing.active_children():
        worker.terminate()  # which `begin` takes for this, and ends one that has only just begun


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
