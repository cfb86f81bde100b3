"""The connections by which processes know of each other's end, and who else connects there."""

import errno
import json
import queue
import socket
import threading
import time

import pytest

from must_jax import lifelines

SOON = 5.0  # seconds; a stranger used to be waited for six times as long


class Client:
    """The runtime's keys, in this process."""

    def __init__(self):
        self._told = {}

    def key_value_set(self, key, value):
        self._told[key] = value

    def blocking_key_value_get(self, key, _):
        return self._told[key]


class First:
    """The lifelines of the first process, to which others connect.

    Attributes:
      lost: numbers of the processes that were told as gone.
    """

    def __init__(self):
        client = Client()
        self.lost = queue.Queue()
        lifelines.hold(client, process=0, host="", when_lost=self.lost.put)
        self._port, self._token = json.loads(client.blocking_key_value_get(lifelines.KEY, 0))
        self._others = []

    def connect(self):
        line = socket.create_connection(("127.0.0.1", self._port), timeout=SOON)
        self._others.append(line)
        return line

    def introduction(self, process):
        return f"{self._token} {process}\n".encode().ljust(lifelines.LINE_BYTES)

    def join(self, process):
        """As another process does; returns when it is known."""
        line = self.connect()
        line.sendall(self.introduction(process))
        self.await_known(process)
        return line

    def await_known(self, process):
        deadline = time.monotonic() + SOON
        while process not in list(lifelines._lines.values()):
            assert time.monotonic() < deadline, f"process {process} is not known"
            time.sleep(0.01)

    def close(self):
        """Returns when the thread, which stays, has nothing more to do."""
        lifelines._left.set()  # nobody is lost any more
        for line in self._others:
            line.close()
        deadline = time.monotonic() + SOON
        while lifelines._lines and time.monotonic() < deadline:
            time.sleep(0.01)


@pytest.fixture
def first(monkeypatch):
    # Those of this process are not to be changed for the tests that come later.
    monkeypatch.setattr(lifelines, "_let_aborts_wait", lambda: None)
    monkeypatch.setattr(lifelines, "_lines", {})
    monkeypatch.setattr(lifelines, "_left", threading.Event())
    first = First()
    yield first
    first.close()


def is_closed(line):
    """Whether the other end closes a connection soon."""
    try:
        return line.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def test_a_process_that_is_gone_is_told_to_the_others_and_one_that_leaves_is_not(first):
    first.join(1).sendall(lifelines.BYE)
    gone, other = first.join(2), first.join(3)
    gone.close()
    assert first.lost.get(timeout=SOON) == 2
    assert other.recv(lifelines.LINE_BYTES) == b"2\n"
    assert first.lost.empty()


def test_strangers_that_say_nothing_delay_no_news_of_a_loss(first):
    """As a port scan or a health check connects."""
    gone = first.join(1)
    silent = [first.connect() for _ in range(3)]
    time.sleep(0.1)  # until the first of them would be waited for
    gone.close()
    assert first.lost.get(timeout=SOON) == 1
    first.join(2).close()
    assert first.lost.get(timeout=SOON) == 2
    assert all(line.fileno() > 0 for line in silent)


def test_an_introduction_may_come_in_parts(first):
    line = first.connect()
    for part in (first.introduction(1)[:10], first.introduction(1)[10:]):
        line.sendall(part)
        time.sleep(0.2)
    first.await_known(1)
    line.close()
    assert first.lost.get(timeout=SOON) == 1


@pytest.mark.parametrize("told", [b"x 1\n", b"GET / HTTP/1.1\r\n", b""])
def test_who_does_not_know_the_token_is_none_of_us(first, told):
    line = first.connect()
    line.sendall(told.ljust(lifelines.LINE_BYTES) if told else b"")
    if not told:
        line.shutdown(socket.SHUT_WR)
    assert is_closed(line)
    assert not lifelines._lines


def test_who_says_nothing_for_long_is_closed_on(first, monkeypatch):
    monkeypatch.setattr(lifelines, "REACH_SECONDS", 0.3)
    assert is_closed(first.connect())


def test_many_strangers_keep_no_process_out(first, monkeypatch):
    monkeypatch.setattr(lifelines, "MOST_STRANGERS", 2)
    monkeypatch.setattr(lifelines, "CROWDED_SECONDS", 0.3)
    gone = first.join(1)
    silent = [first.connect() for _ in range(5)]
    first.join(2)
    gone.close()
    assert first.lost.get(timeout=SOON) == 1
    assert all(map(is_closed, silent[:3]))


def test_a_system_without_room_for_a_connection_ends_no_watch(first, monkeypatch):
    accept, refused = socket.socket.accept, []

    def refuse(self):
        if len(refused) < 3:
            refused.append(errno.EMFILE)
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(self)

    gone = first.join(1)
    monkeypatch.setattr(socket.socket, "accept", refuse)
    first.join(2)
    assert len(refused) == 3
    gone.close()
    assert first.lost.get(timeout=SOON) == 1
