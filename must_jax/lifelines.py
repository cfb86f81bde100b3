"""A connection from every process to the first, by which all know at once when one is gone.

The kernel closes the connections of a process that was killed, and asks on a silent one whether the
other host is still there. The runtime's own signs of life are noticed missing much later.
"""

import contextlib
import ctypes
import functools
import json
import secrets
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

KEY = "must_jax/lifelines"
# For the first process to tell where it listens, to be reached there, and to be told by whom.
REACH_SECONDS = 30.0
BYE = b"bye\n"
LINE_BYTES = 64  # of whatever is said here, at the most
# Connections that have not said whose they are: a port scan must not take all files from a run.
# While there are as many, others wait before the door, and those inside have less time.
MOST_STRANGERS = 128
CROWDED_SECONDS = 1.0
LOOK_SECONDS = 0.1  # between looks at whether a stranger's time is over, and there is room again
# A host is gone when it has not answered three questions, 5 s apart, after 5 s of silence.
KEEP_ALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}

_lines: dict[socket.socket, int] = {}  # that are held, and which process is at the other end
_left = threading.Event()


def hold(
    client: Any, *, process: int, host: str, when_lost: Callable[[int], None]
) -> Callable[[], None]:
    """Connects this process; a thread calls `when_lost` with the number of one that is gone.

    Where the network lets nothing but the runtime's own port through, nothing is held.

    Args:
      client: of the runtime, whose keys tell where the first process listens.
      process: the number of this one.
      host: of the first process.
      when_lost: ends this process.

    Returns:
      What to call when this process ends as it should.
    """
    _let_aborts_wait()
    if process == 0:
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        server = socket.create_server(("", 0), family=family, dualstack_ipv6=dual, backlog=1024)
        token = secrets.token_hex(8)  # whoever else connects is none of us
        client.key_value_set(KEY, json.dumps([server.getsockname()[1], token]))
        watch = functools.partial(_watch_all, server, token, when_lost)
    else:
        try:
            told = client.blocking_key_value_get(KEY, int(1000 * REACH_SECONDS))
            port, token = json.loads(told)
            line = socket.create_connection((host, port), timeout=REACH_SECONDS)
            line.sendall(f"{token} {process}\n".encode().ljust(LINE_BYTES))
        except Exception:
            return lambda: None
        _keep(line, 0)
        watch = functools.partial(_watch_first, line, when_lost)
    threading.Thread(target=watch, daemon=True).start()
    return say_farewell


def say_farewell() -> None:
    """Tells the processes at the other ends that this one ends as it should."""
    _left.set()
    for line in list(_lines):
        with contextlib.suppress(OSError):
            line.sendall(BYE)
            line.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for the other end


def _keep(line: socket.socket, process: int) -> None:
    line.settimeout(None)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    _lines[line] = process


def _receive(line: socket.socket, most: int = LINE_BYTES) -> bytes:
    """What was said, `most` bytes of it; nothing where the other end is gone."""
    try:
        return line.recv(most)
    except OSError:
        return b""


def _watch_first(line: socket.socket, when_lost: Callable[[int], None]) -> None:
    told = _receive(line).split()
    if told[:1] != BYE.split() and not _left.is_set():
        when_lost(int(told[0]) if told else 0)


def _watch_all(server: socket.socket, token: str, when_lost: Callable[[int], None]) -> None:
    with selectors.DefaultSelector() as selector:
        door = _Door(server, token, selector)
        while True:
            for key, _ in selector.select(LOOK_SECONDS if door.strangers else None):
                line: Any = key.fileobj
                if line is server:
                    door.let_in()
                elif line in door.strangers:
                    door.listen(line)
                else:
                    selector.unregister(line)
                    _let_go(line, when_lost)
            door.close_on_the_slow()


def _let_go(line: socket.socket, when_lost: Callable[[int], None]) -> None:
    """Tells all of a process that is gone without a farewell."""
    process = _lines.pop(line)
    if _receive(line) == BYE or _left.is_set():
        return
    for other in _lines:
        with contextlib.suppress(OSError):
            other.sendall(b"%d\n" % process)
    when_lost(process)


class _Door:
    """Where processes and whoever else connect; nobody who says nothing is waited for.

    Attributes:
      strangers: those inside who have not said who they are, since when, by `time.monotonic`, and
        what they have said.
    """

    def __init__(self, server: socket.socket, token: str, selector: selectors.BaseSelector):
        server.setblocking(False)  # who has knocked may be gone again
        selector.register(server, selectors.EVENT_READ)
        self._server = server
        self._token = token.encode()
        self._selector = selector
        self.strangers: dict[socket.socket, tuple[float, bytes]] = {}

    def let_in(self) -> None:
        """Takes one connection, or rests where there is no room for it in here or in the system."""
        if len(self.strangers) >= MOST_STRANGERS:
            time.sleep(LOOK_SECONDS)
            return
        try:
            line, _ = self._server.accept()
        except OSError:
            time.sleep(LOOK_SECONDS)  # it would be told of at once again
            return
        line.setblocking(False)
        self._selector.register(line, selectors.EVENT_READ)
        self.strangers[line] = time.monotonic(), b""

    def listen(self, line: socket.socket) -> None:
        """Takes what a stranger says, which may come in parts; holds the line of a process."""
        since, said = self.strangers[line]
        heard = _receive(line, LINE_BYTES - len(said))
        said += heard
        self.strangers[line] = since, said
        if heard and len(said) < LINE_BYTES:
            return
        told = said.split()
        if len(said) < LINE_BYTES or len(told) != 2 or told[0] != self._token:
            self._close(line)
            return
        del self.strangers[line]
        _keep(line, int(told[1]))

    def close_on_the_slow(self) -> None:
        """Closes the connections whose time to say who they are is over."""
        is_crowded = len(self.strangers) >= MOST_STRANGERS
        after = time.monotonic() - (CROWDED_SECONDS if is_crowded else REACH_SECONDS)
        for line, (since, _) in list(self.strangers.items()):
            if since < after:
                self._close(line)

    def _close(self, line: socket.socket) -> None:
        del self.strangers[line]
        self._selector.unregister(line)
        line.close()


def _let_aborts_wait() -> None:
    """Lets the runtime, which aborts as soon as it misses the first process, wait 6 s with it.

    It offers no hook; but SIGABRT is the number 6, and libc's `sleep` may be called by a signal.
    Meanwhile this process ends for the reason that the threads here know.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
