"""Reads pickles as data: an interpreter of their instructions that can do nothing else.

Python's own unpickler, however it is restricted, obeys lengths and indices that a file makes up,
hashes and builds whatever it is told to, and takes gigabytes or years for a file of a few bytes.
Here every instruction makes one plain value, and there is a limit to their number. Those that copy
values which stand in several places count once more for each.
"""

import pickle
import pickletools
import reprlib
from collections.abc import Callable
from typing import Any

# Each instruction makes a few hundred bytes at most. PyTorch writes some 60 a tensor, and a hundred
# for each module of TorchScript: the largest CLIPs stay below a tenth of this.
MAX_STEPS = 1_000_000
MAX_BYTES = 16 * 2**20
# Letters or bytes of a key, and what its number is less than: optimizers number their parameters. A
# file chooses the hashes of larger numbers, of which those of one hash take the square of their
# time; and a tuple is hashed whole every time.
_MAX_KEY, _LARGEST_KEY = 1_000, 2**32

_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
# Text of Python 2, which `pickletools` takes for Latin-1.
_OLD_TEXT = {"STRING", "BINSTRING", "SHORT_BINSTRING"}
_EMPTY = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PASSED_OVER = {"PROTO", "FRAME"}


class ForbiddenGlobalError(pickle.UnpicklingError):
    """A pickle asked for a name that is not admitted. The message is that name."""


class Object:
    """Stands for an instance of any class that is admitted: attributes alone."""

    __slots__ = ("attributes",)

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}


class Class:
    """Stands for a class whose instances are `Object`s."""


class Function:
    """A function that a pickle may call."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call


def read_pickle(
    data: bytes,
    *,
    find_global: Callable[[str, str], Any],
    load_persistent: Callable[[Any], Any],
) -> Any:
    """The value in a pickle: plain types, `Object`s and what the functions make.

    Args:
      data: the pickle.
      find_global: gives a `Function`, a `Class` or a plain value for a module and a name; None
        where they are not admitted.
      load_persistent: gives the value of a persistent id.

    Raises:
      ForbiddenGlobalError: it asks for a name that is not admitted.
      Exception: nearly any kind; the pickle is damaged, or asks for what is not supported.
    """
    machine = _Machine(find_global, load_persistent)
    for instruction, argument, _ in pickletools.genops(data):
        machine.count(1)
        if instruction.name == "STOP":
            break
        machine.obey(instruction.name, argument)
    return machine.pop()


class _Machine:
    def __init__(
        self, find_global: Callable[[str, str], Any], load_persistent: Callable[[Any], Any]
    ) -> None:
        self._find_global = find_global
        self._load_persistent = load_persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._steps = 0

    def count(self, steps: int) -> None:
        """Counts instructions, or values that one is about to copy.

        Raises:
          UnpicklingError: they are too many.
        """
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise pickle.UnpicklingError(f"more than {MAX_STEPS:,} values made or copied")

    def pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise pickle.UnpicklingError("a mark in place of a value")
        return value

    def _pop_to_mark(self) -> list[Any]:
        values = []
        while (value := self._stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def obey(self, name: str, argument: Any) -> None:
        push = self._stack.append
        if name in _LITERALS:
            push(argument)
        elif name in _OLD_TEXT:
            push(argument.encode("latin-1").decode("utf-8"))
        elif name in _CONSTANTS:
            push(_CONSTANTS[name])
        elif name in _EMPTY:
            push(_EMPTY[name]())
        elif name in _TUPLES:
            push(tuple([self.pop() for _ in range(_TUPLES[name])][::-1]))
        elif name == "MARK":
            push(_MARK)
        elif name == "TUPLE":
            push(tuple(self._pop_to_mark()))
        elif name == "LIST":
            push(self._pop_to_mark())
        elif name == "DICT":
            values = self._pop_to_mark()
            push({})
            self._set_items(values)
        elif name == "POP":
            self._stack.pop()
        elif name == "POP_MARK":
            self._pop_to_mark()
        elif name == "DUP":
            push(self._top())
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[argument] = self._top()
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._top()
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            push(self._memo[argument])
        elif name == "APPEND":
            self._append([self.pop()])
        elif name == "APPENDS":
            self._append(self._pop_to_mark())
        elif name == "SETITEM":
            value, key = self.pop(), self.pop()
            self._set_items([key, value])
        elif name == "SETITEMS":
            self._set_items(self._pop_to_mark())
        elif name in ("GLOBAL", "INST"):
            module, _, attribute = argument.partition(" ")
            push(self._global(module, attribute))
            if name == "INST":
                raise pickle.UnpicklingError("instruction INST")
        elif name == "STACK_GLOBAL":
            attribute, module = self.pop(), self.pop()
            push(self._global(module, attribute))
        elif name == "BINPERSID":
            push(self._load_persistent(self.pop()))
        elif name == "NEWOBJ":
            arguments, kind = self.pop(), self.pop()
            if not isinstance(kind, Class) or arguments != ():
                raise pickle.UnpicklingError("an object of no class, or with arguments")
            push(Object())
        elif name == "REDUCE":
            arguments, function = self.pop(), self.pop()
            if not isinstance(function, Function) or not isinstance(arguments, tuple):
                raise pickle.UnpicklingError("a call of no function")
            # What it may go over: the arguments, and the values in them.
            lengths = [len(each) for each in arguments if type(each) in (tuple, list, dict)]
            self.count(len(arguments) + sum(lengths))
            push(function.call(*arguments))
        elif name == "BUILD":
            self._set_state(self.pop())
        elif name not in _PASSED_OVER:
            raise pickle.UnpicklingError(f"instruction {name}")

    def _top(self) -> Any:
        value = self._stack[-1]
        if value is _MARK:
            raise pickle.UnpicklingError("a mark in place of a value")
        return value

    def _append(self, values: list[Any]) -> None:
        target = self._top()
        if type(target) is not list:
            raise pickle.UnpicklingError("items of no list")
        target.extend(values)

    def _set_items(self, values: list[Any]) -> None:
        target = self._top()
        if type(target) is not dict:
            raise pickle.UnpicklingError("items of no dictionary")
        target.update(as_dict(zip(values[::2], values[1::2], strict=True)))

    def _global(self, module: Any, name: Any) -> Any:
        if type(module) is not str or type(name) is not str:
            raise pickle.UnpicklingError("a global that is no name")
        found = self._find_global(module, name)
        if found is None:
            # The name is the stranger's: it must not write to the terminal anything but letters.
            raise ForbiddenGlobalError(f"{module}.{name}".encode("unicode_escape").decode())
        return found

    def _set_state(self, state: Any) -> None:
        target = self._top()
        if isinstance(target, Object) and type(state) is dict:
            self.count(len(state))
            if not all(type(key) is str for key in state):
                raise pickle.UnpicklingError("an attribute without a name")
            target.attributes.update(state)
        elif type(target) is not dict:
            # A dictionary's attributes tell versions of modules, which nobody asks for.
            raise pickle.UnpicklingError("state set on what has none")


def as_dict(pairs: Any) -> dict[Any, Any]:
    """A dictionary of pairs, whose keys are quick to hash and to compare.

    Raises:
      UnpicklingError: a key is neither a short text or bytes, a small whole number, nor None.
    """
    values = {}
    for key, value in pairs:
        if not _is_key(key):
            raise pickle.UnpicklingError(f"key {short(key)} of a dictionary")
        values[key] = value
    return values


def _is_key(value: Any) -> bool:
    if type(value) in (str, bytes):
        return len(value) <= _MAX_KEY
    return value is None or (type(value) in (int, bool) and abs(value) < _LARGEST_KEY)


def short(value: Any) -> str:
    """A value for a message, however large or deep it is."""
    return reprlib.repr(value)
