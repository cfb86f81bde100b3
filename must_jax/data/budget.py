"""A limit on what the threads of a process hold together."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

_T = TypeVar("_T")


class Budget:
    """Units that threads take and give back; who asks for more than are left waits.

    A thread that waits for many units lets no later one past, so that its turn comes however many
    take a few. One that holds units must not ask for more: it may wait for itself.
    """

    def __init__(self, units: int):
        """Of `units`, all of them free."""
        self.units = units
        self._renew()
        # A child has none of the threads that would give back what they hold.
        os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._left = self.units
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, units: int) -> Iterator[None]:
        """Holds so many units, all there are at most."""
        units = min(units, self.units)
        # The turn is kept while waiting: the others wait for it, not for units.
        with self._turn, self._changed:
            while self._left < units:
                self._changed.wait()
            self._left -= units
        try:
            yield
        finally:
            with self._changed:
                self._left += units
                self._changed.notify()

    def once_more(self, work: Callable[..., _T], *arguments: object) -> _T:
        """What some work returns; where memory is short, of a second try after all units were free.

        The work may take units. What it returns is to be a matter of its arguments alone, not of
        what other threads hold at the time.
        """
        # Within an `except`, what the first try has made would be held until the second one ends.
        with contextlib.suppress(MemoryError):
            return work(*arguments)
        with self.taken(self.units):
            pass
        return work(*arguments)
