"""A run that is asked to stop by a signal, which all of its processes hear at one step."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from jax.experimental import multihost_utils

from must_jax import distributed
from must_jax.errors import StoppedError, print_error

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
EXIT_UNSAVED = 1
NOTICE_KEY = "RECEIVED_PREEMPTION_NOTICE"  # by which JAX's service tells that a process was asked


class Preemption:
    """Tells between steps whether the run was asked to stop.

    A lone process takes SIGTERM, the end of its terminal, but under nohup, and the first Ctrl-C;
    the second one ends it as ever. Of several processes, any may be told; JAX's preemption service
    makes all of them stop at the same step.
    """

    def __init__(self, *, grace_seconds: float, when_asked: Callable[[], None] = lambda: None):
        """`grace_seconds` after it was asked to stop, the process ends, saved or not.

        A lone process calls `when_asked` at once, to end what it may be waiting for.
        """
        self._grace_seconds = grace_seconds
        self._when_asked = when_asked
        self._asked = threading.Event()
        self._calls = 0
        self._timer: threading.Timer | None = None
        self._starting = threading.Lock()

    def was_asked(self) -> bool:
        """Whether this process knows of it; others may not yet."""
        return self._timer is not None

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
        several = distributed.is_running()
        # Of several processes, SIGTERM belongs to JAX's preemption service.
        taken = [number for number in SIGNALS if not (several and number == signal.SIGTERM)]
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
            taken.remove(signal.SIGHUP)
        before = {number: signal.signal(number, self._ask) for number in taken}
        # While the main thread compiles, Python runs no handler: a byte wakes a thread.
        bell, rope = socket.socketpair()
        rope.setblocking(False)
        signal.set_wakeup_fd(rope.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._hear, args=(bell, several), daemon=True).start()
        ended = threading.Event()
        if several:
            threading.Thread(target=self._hear_service, args=(ended,), daemon=True).start()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(-1)
            rope.close()
            ended.set()
            if self._timer is not None:
                self._timer.cancel()

    def _hear(self, bell: socket.socket, several: bool) -> None:
        with bell:
            if not bell.recv(1):
                return
            self._start_timer()
            if several:
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                self._asked.set()
                self._when_asked()
            while bell.recv(1):  # more signals need an ear, or Python complains
                pass

    def _hear_service(self, ended: threading.Event) -> None:
        """The main thread of any process may be far from asking whether one was told to stop."""
        while not ended.wait(distributed.LOOK_SECONDS):
            if distributed.heard(NOTICE_KEY) is not None:
                self._start_timer()
                return

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._asked.set()

    def _start_timer(self) -> None:
        with self._starting:
            if self._timer is None:
                self._timer = threading.Timer(self._grace_seconds, self._end)
                self._timer.daemon = True
                self._timer.start()

    def _end(self) -> None:
        print_error(
            f"asked to stop, and not done in {self._grace_seconds:g} s "
            "(config.grace_seconds); the same command goes on from the last complete checkpoint"
        )
        distributed.leave(EXIT_UNSAVED)
