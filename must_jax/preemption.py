"""A run that is asked to stop: SIGTERM or Ctrl-C, heard by all of its processes at one step."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from jax.experimental import multihost_utils

from must_jax import distributed
from must_jax.errors import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGINT)
EXIT_UNSAVED = 1


class Preemption:
    """Tells between steps whether the run was asked to stop.

    A lone process takes SIGTERM and the first Ctrl-C; the second one ends it as ever. Of several
    processes, any may be told; JAX's preemption service makes all of them stop at the same step.
    """

    def __init__(self, *, grace_seconds: float):
        """`grace_seconds` after it was asked to stop, the process ends, saved or not."""
        self._grace_seconds = grace_seconds
        self._asked = threading.Event()
        self._calls = 0
        self._timer: threading.Timer | None = None

    def check(self) -> None:
        """Called where a run can stop. All processes must call it, equally often.

        Raises:
          StoppedError: the run was asked to stop; on all processes in the same call.
        """
        self._calls += 1
        if distributed.is_running():
            asked = multihost_utils.reached_preemption_sync_point(self._calls)
        else:
            asked = self._asked.is_set()
        if asked:
            self._start_timer()
            raise StoppedError

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals inside; outside they do what they did. In the main thread alone."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        if distributed.is_running():
            # SIGTERM belongs to JAX's preemption service, which hears of Ctrl-C by it.
            before = {signal.SIGINT: signal.signal(signal.SIGINT, self._hand_on)}
            bell: tuple[socket.socket, ...] = ()
        else:
            before = {number: signal.signal(number, self._ask) for number in SIGNALS}
            # While the main thread compiles, Python runs no handler: a byte wakes a thread.
            bell = socket.socketpair()
            bell[1].setblocking(False)
            signal.set_wakeup_fd(bell[1].fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._hear, args=(bell[0],), daemon=True).start()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if bell:
                signal.set_wakeup_fd(-1)
                bell[1].close()
            if self._timer is not None:
                self._timer.cancel()

    def _hear(self, bell: socket.socket) -> None:
        with bell:
            if bell.recv(1):
                self._asked.set()
                self._start_timer()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._asked.set()

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGTERM)

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = threading.Timer(self._grace_seconds, self._end)
            self._timer.daemon = True
            self._timer.start()

    def _end(self) -> None:
        print(
            f"error: asked to stop, and not done in {self._grace_seconds:g} s "
            "(config.grace_seconds); the same command goes on from the last complete checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_UNSAVED)
