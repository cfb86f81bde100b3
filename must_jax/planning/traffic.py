"""Bytes that the instructions of an optimised program read and write, fusions as wholes."""

import dataclasses
import re

from must_jax.planning.hlo import Array, Computation, Executed, Instruction, Program

FREE = frozenset(
    {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "opt-barrier", "after-all"}
    | {"while", "conditional", "call", "partition-id", "replica-id"}
)
SLICES = ("dynamic-slice", "slice", "gather")


def results(computation: Computation, name: str) -> tuple[Array, ...]:
    return computation[name].arrays if name in computation else ()


def estimate(instruction: Instruction, name: str) -> float | None:
    """What the author of a kernel says that it costs."""
    told = re.search(rf'"cost_estimate":\{{[^}}]*"{name}":"?(\d+)', instruction.attributes)
    return float(told[1]) if told else None


def traffic(program: Program, run: Executed) -> list[tuple[Array, float]]:
    """The arrays that an instruction reads and writes, and how much of them."""
    instruction, computation = run.instruction, run.computation
    opcode = instruction.opcode
    if opcode in FREE or opcode.endswith("-start") or opcode.startswith("async"):
        return []
    inputs = [results(computation, name) for name in instruction.operands]
    if opcode.endswith("-done"):
        # What arrived was read where the start's operand lies.
        start = computation[instruction.operands[0]]
        source = results(computation, start.operands[0]) if start.operands else ()
        space = source[0].space if source else 0
        read = [dataclasses.replace(a, space=space) for a in instruction.arrays]
        return [(a, 1.0) for a in (*read, *instruction.arrays)]
    if opcode in SLICES:
        space = inputs[0][0].space if inputs[0] else 0
        read = [dataclasses.replace(a, space=space) for a in instruction.arrays]
        return [(a, 1.0) for a in (*read, *instruction.arrays)]
    if opcode == "dynamic-update-slice":
        return [(a, 2.0) for a in inputs[1]]
    if opcode == "fusion":
        callee = program.computations[instruction.called("calls")[0]]
        return _fusion_traffic(program, callee)
    told = estimate(instruction, "bytes_accessed") if opcode == "custom-call" else None
    if told is not None:
        return [(Array("u8", (int(told),), 0), 1.0)]
    return [(a, 1.0) for arrays in (*inputs, instruction.arrays) for a in arrays]


def _fusion_traffic(program: Program, callee: Computation) -> list[tuple[Array, float]]:
    """Reads of parameters and writes of results: slices as slices, and what passes through not."""
    root = next(i for i in callee.values() if i.is_root)
    moved: list[tuple[Array, float]] = []
    for inner in callee.values():
        if inner.opcode == "parameter" and inner.arrays:
            space = inner.arrays[0].space
            read = _read(program, callee, inner)
            moved += [(dataclasses.replace(a, space=space), 1.0) for a in read]
    written = [callee[n] for n in root.operands] if root.opcode == "tuple" else [root]
    for result in written:
        result = _through_bitcasts(callee, result)
        if result.opcode == "parameter":
            continue
        if result.opcode == "dynamic-update-slice":
            space = result.arrays[0].space
            updates = callee[result.operands[1]].arrays
            moved += [(dataclasses.replace(a, space=space), 1.0) for a in updates]
        else:
            moved += [(a, 1.0) for a in result.arrays]
    return moved


def _read(program: Program, callee: Computation, value: Instruction) -> list[Array]:
    """What of a value is read inside of a fusion: its slices where nothing needs all of it."""
    read: list[Array] = []
    for user in callee.values():
        for place, name in enumerate(user.operands):
            if name != value.name or (user.is_root and user.opcode == "tuple"):
                continue
            if user.opcode == "bitcast":
                part = [] if user.is_root else _read(program, callee, user)
            elif user.opcode in SLICES and place == 0:
                part = list(user.arrays)
            elif user.opcode == "dynamic-update-slice" and place == 0:
                part = []
            elif user.opcode == "fusion":
                nested = program.computations[user.called("calls")[0]]
                inner = next(
                    i
                    for i in nested.values()
                    if i.opcode == "parameter" and i.literal == str(place)
                )
                part = _read(program, nested, inner)
            else:
                return list(value.arrays)
            whole = sum(a.num_bytes for a in value.arrays)
            if sum(a.num_bytes for a in part) >= whole:
                return list(value.arrays)
            read += part
    return read


def _through_bitcasts(callee: Computation, instruction: Instruction) -> Instruction:
    while instruction.opcode == "bitcast":
        instruction = callee[instruction.operands[0]]
    return instruction
