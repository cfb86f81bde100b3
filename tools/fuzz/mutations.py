"""Random damage to bytes and to JSON values. A mutation is a function of its generator alone."""

import json
import os
import random
from pathlib import Path
from typing import Any

# Numbers that lengths, offsets and counts of formats break at.
_EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
_HEAD = 4096  # bytes, at either end of a file, where formats keep what describes the rest


def make_odd_file(path: Path, rng: random.Random) -> str:
    """Puts what can't be read to an end in a file's place, and says what."""
    path.unlink(missing_ok=True)
    kind = rng.choice(("pipe", "endless device", "link in a circle", "link to a text", "terabyte"))
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "terabyte":
        path.touch()
        os.truncate(path, 2**40)
    else:
        links = {"endless device": "/dev/zero", "link in a circle": path.name}
        path.symlink_to(links.get(kind, __file__))
    return kind


def take_away(path: Path, rng: random.Random) -> str | None:
    """Now and then removes a file, or puts an odd one in its place; says what, or None."""
    if rng.random() < 0.03:
        path.unlink()
        return "missing"
    return make_odd_file(path, rng) if rng.random() < 0.05 else None


def mutate_bytes(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Damaged bytes, and what was done. Half of the places lie near the start or the end."""
    kinds = (_flip, _cut, _overwrite, _edge, _remove, _repeat, _insert, _zero, _swap, _append)
    kind = rng.choice(kinds)
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16)) if kind is _flip else 1):
        kind(content, rng)
    return bytes(content), kind.__name__.strip("_")


def _place(content: bytearray, rng: random.Random) -> int:
    size = max(1, len(content))
    near = min(_HEAD, size)
    return rng.choice((rng.randrange(near), size - 1 - rng.randrange(near), rng.randrange(size)))


def _flip(content: bytearray, rng: random.Random) -> None:
    if content:
        content[_place(content, rng)] ^= 1 << rng.randrange(8)


def _cut(content: bytearray, rng: random.Random) -> None:
    del content[_place(content, rng) :]


def _overwrite(content: bytearray, rng: random.Random) -> None:
    start = _place(content, rng)
    junk = rng.randbytes(rng.choice((1, 4, 64)))
    content[start : start + len(junk)] = junk


def _edge(content: bytearray, rng: random.Random) -> None:
    start, size = _place(content, rng), rng.choice((1, 2, 4, 8))
    number = rng.choice(_EDGES) % 256**size
    content[start : start + size] = number.to_bytes(size, rng.choice(("little", "big")))


def _remove(content: bytearray, rng: random.Random) -> None:
    start = _place(content, rng)
    del content[start : start + rng.choice((1, 8, 512))]


def _repeat(content: bytearray, rng: random.Random) -> None:
    start = _place(content, rng)
    content[start:start] = content[start : start + rng.choice((1, 8, 512))]


def _insert(content: bytearray, rng: random.Random) -> None:
    start = _place(content, rng)
    content[start:start] = rng.randbytes(rng.choice((1, 8, 512)))


def _zero(content: bytearray, rng: random.Random) -> None:
    start, size = _place(content, rng), rng.choice((8, 512, 65536))
    content[start : start + size] = bytes(len(content[start : start + size]))


def _swap(content: bytearray, rng: random.Random) -> None:
    a, b, size = _place(content, rng), _place(content, rng), rng.choice((1, 8, 512))
    first, second = content[a : a + size], content[b : b + size]
    shortest = min(len(first), len(second))
    content[a : a + shortest], content[b : b + shortest] = second[:shortest], first[:shortest]


def _append(content: bytearray, rng: random.Random) -> None:
    content += rng.randbytes(rng.choice((1, 64, 4096)))


ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    10**400,
    0.5,
    -0.0,
    1e-300,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../../etc/passwd",
    "/etc/passwd",
    "nul\0",
    "line\nbreak \x1b[31mred",
    "\ud800",
    "\u202eright to left",
    "{0.__class__}",
    "x" * 100_000,
    [],
    [[]],
    {},
    {"": None},
    [1, 2, 3],
)


def mutate_json(value: Any, rng: random.Random) -> tuple[str, str]:
    """The text of a JSON value one place of which was changed, and what was done."""
    value = json.loads(json.dumps(value))
    places = list(_places(value))
    container, key = rng.choice(places) if places else (None, None)
    kind = rng.choice(("value", "value", "value", "scale", "remove", "rename", "deep", "long"))
    where = str(key)[:40]
    if kind == "deep":
        depth = rng.choice((100, 2_000, 200_000))
        return "[" * depth + rng.choice(("", "]" * depth)), f"{depth} lists in lists"
    if kind == "long":
        digits = "9" * rng.choice((20, 400, 5_000))
        return json.dumps(value).replace(": 1", f": {digits}1", 1), f"{len(digits)} digits"
    if container is None:
        return json.dumps(rng.choice(ODD_VALUES)), "another value"
    old = container[key]
    if kind == "remove":
        del container[key]
    elif kind == "rename" and isinstance(container, dict):
        container[rng.choice(("", "x", "../x", where + "\0", where.upper()))] = container.pop(key)
    elif kind == "scale" and type(old) in (int, float):
        container[key] = old * rng.choice((-1, 2, 3, 10**6, 10**12)) + rng.choice((0, 1))
    else:
        container[key] = rng.choice(ODD_VALUES)
    return json.dumps(value), f"{kind} of {where}"


def _places(value: Any) -> Any:
    """Every (container, key) within a JSON value."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])
