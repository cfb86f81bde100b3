"""An optimised HLO program as text, read far enough to count what it does."""

import dataclasses
import math
import re
from collections.abc import Iterator

BITS = {"pred": 8, "bf16": 16, "token": 0}  # the others end in their bits: f32, s8, f8e4m3fn
ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = ")


@dataclasses.dataclass(frozen=True)
class Array:
    """Type, sizes and memory of an array; memory 0 is the device's main one (HBM)."""

    dtype: str
    shape: tuple[int, ...]
    space: int

    @property
    def num_bytes(self) -> int:
        """Bytes without padding."""
        digits = re.match(r"[a-z]+(\d+)", self.dtype)
        bits = BITS.get(self.dtype, int(digits[1]) if digits else 0)
        return math.ceil(math.prod(self.shape) * bits / 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line. `arrays` are its results, `attributes` all behind the operands, as text."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    literal: str
    attributes: str
    is_root: bool

    def called(self, *keys: str) -> list[str]:
        """Names of the computations that attributes such as `body=%name` or `calls={...}` give."""
        found = re.findall(rf"\b(?:{'|'.join(keys)})=(\{{[^}}]*\}}|%?[\w.-]+)", self.attributes)
        return [name for names in found for name in re.findall(r"[\w.-]+", names)]


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations by name."""

    computations: dict[str, Computation]
    entry: str


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if not depth:
            return place
    raise ValueError(f"no closing parenthesis: {text[:80]}")


def _instruction(line: str, match: re.Match) -> Instruction:
    rest = re.sub(r"/\*.*?\*/", "", line[match.end() :])
    end = _closing(rest, 0) + 1 if rest[0] == "(" else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    start = rest.index("(")
    stop = _closing(rest, start)
    arrays = []
    for dtype, sizes, layout in ARRAY.findall(kind):
        space = re.search(r"S\((\d+)\)", layout)
        shape = tuple(int(size) for size in sizes.split(",") if size)
        arrays.append(Array(dtype, shape, int(space[1]) if space else 0))
    inside = rest[start + 1 : stop]
    return Instruction(
        name=match[2],
        opcode=rest[:start],
        arrays=tuple(arrays),
        operands=tuple(re.findall(r"%([\w.-]+)", inside)),
        literal=inside,
        attributes=rest[stop + 1 :],
        is_root=bool(match[1]),
    )


def parse(text: str) -> Program:
    """Reads `compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    entry = ""
    current: Computation = {}
    for line in text.splitlines():
        header = HEADER.match(line)
        if header:
            current = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
            continue
        match = INSTRUCTION.match(line)
        if match:
            current[match[2]] = _instruction(line, match)
    return Program(computations, entry)


@dataclasses.dataclass(frozen=True)
class Executed:
    """An instruction as often as it runs; `scope` is the computation around its fusions."""

    instruction: Instruction
    computation: Computation
    times: int
    scope: str
    is_fused: bool


def executed(program: Program) -> Iterator[Executed]:
    """Every instruction of the program with the number of times that a call runs it.

    Of a conditional's branches each is taken to run.

    Raises:
      ValueError: the trips of a loop can't be told.
    """
    yield from _walk(program, program.entry, times=1, scope=program.entry, is_fused=False)


def _walk(
    program: Program, name: str, *, times: int, scope: str, is_fused: bool
) -> Iterator[Executed]:
    computation = program.computations[name]
    for instruction in computation.values():
        yield Executed(instruction, computation, times, scope, is_fused)
        if instruction.opcode == "while":
            trips = times * trip_count(program, computation, instruction)
            inner, inside = instruction.called("body"), False
        elif instruction.opcode in ("fusion", "custom-call"):
            trips, inner, inside = times, instruction.called("calls"), True
        elif instruction.opcode in ("call", "conditional") or instruction.opcode.startswith(
            "async-start"
        ):
            keys = ("to_apply", "calls", "branch_computations", "\\w+_computation")
            trips, inner, inside = times, instruction.called(*keys), is_fused
        else:
            continue
        for callee in inner:
            if callee in program.computations:
                fused = is_fused or inside
                yield from _walk(
                    program, callee, times=trips, scope=scope if fused else callee, is_fused=fused
                )


def _constant(computation: Computation, name: str) -> int | None:
    instruction = computation.get(name)
    while instruction and instruction.opcode in ("copy", "convert", "bitcast"):
        instruction = computation.get(instruction.operands[0])
    if instruction and instruction.opcode == "constant" and instruction.literal.isdigit():
        return int(instruction.literal)
    return None


def trip_count(program: Program, computation: Computation, loop: Instruction) -> int:
    """How often a loop's body runs: what the compiler noted, or bound over step of its counter.

    Raises:
      ValueError: it is not told, and the condition is not `counter < constant`.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known[1])
    condition = program.computations[loop.called("condition")[0]]
    bounds = [i for i in condition.values() if i.opcode == "constant" and i.literal.isdigit()]
    compares = any("direction=LT" in i.attributes for i in condition.values()) or any(
        "direction=LT" in inner.attributes
        for i in condition.values()
        for callee in i.called("calls")
        for inner in program.computations[callee].values()
    )
    counters = [i for i in condition.values() if i.opcode == "get-tuple-element"]
    if not compares or len(bounds) != 1 or len(counters) != 1:
        raise ValueError(f"the trips of the loop {loop.name} are not told by its condition")
    index = re.search(r"index=(\d+)", counters[0].attributes)
    place = int(index[1]) if index else 0
    body = program.computations[loop.called("body")[0]]
    root = next(i for i in body.values() if i.is_root)
    step, first = None, None
    moved = body.get(root.operands[place]) if root.opcode == "tuple" else None
    if moved and moved.opcode == "add":
        step = next((v for v in (_constant(body, name) for name in moved.operands) if v), None)
    carried = computation.get(loop.operands[0])
    if carried and carried.opcode == "tuple":
        first = _constant(computation, carried.operands[place])
    if step is None or first is None:
        raise ValueError(f"the trips of the loop {loop.name} don't start or step by a constant")
    return max(0, -(-(int(bounds[0].literal) - first) // step))
