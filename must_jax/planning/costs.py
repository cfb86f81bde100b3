"""FLOPs, bytes and collectives of an optimised program, each loop's body times its trips.

Counted here and not by the compiler's cost analysis, which counts a body once.
"""

import dataclasses
import math
import re
from collections import Counter

from must_jax.planning.hlo import Array, Computation, Executed, Instruction, Program, executed

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
FREE = frozenset(
    {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "opt-barrier", "after-all"}
    | {"while", "conditional", "call", "partition-id", "replica-id"}
)
HEAVY_CALL = re.compile(r"gemm|matmul|conv|fmha|attention|tpu_custom_call|triton|mosaic", re.I)


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind over groups of one size.

    `num_bytes` is what they come to on one chip: of each the larger of operands and results.
    """

    kind: str
    group_size: int
    count: int
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of one call, on one chip.

    Attributes:
      flops: of matrix products and convolutions; two for a multiplication and its addition.
      bytes_accessed: operands and results of every fusion, in whatever memory, as the compiler's
        cost analysis counts them.
      hbm_bytes: those in main memory, not in on-chip memory that the compiler placed arrays in.
      uncounted: custom calls that may compute much and tell no FLOPs.
    """

    flops: float
    bytes_accessed: int
    hbm_bytes: int
    collectives: tuple[Collective, ...]
    uncounted: tuple[str, ...]


def count(program: Program) -> Costs:
    """Counts a program.

    Raises:
      ValueError: the trips of a loop can't be told.
    """
    flops, total, hbm = 0.0, 0.0, 0.0
    uncounted: set[str] = set()
    moved: dict[tuple, tuple[int, Executed]] = {}
    for run in executed(program):
        instruction = run.instruction
        flops += run.times * _flops(run, uncounted)
        if not run.is_fused:
            for array, times in _traffic(program, run):
                total += run.times * times * array.num_bytes
                hbm += run.times * times * array.num_bytes * (array.space == 0)
        kind = instruction.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            # One that is spread over several fusions stands in each, with the same channel.
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            key = (run.scope, channel[1] if run.is_fused and channel else instruction.name)
            moved[key] = (max(run.times, moved[key][0] if key in moved else 0), run)
    counts: Counter = Counter()
    sizes: Counter = Counter()
    for times, run in moved.values():
        kind = run.instruction.opcode.removesuffix("-start")
        group = (kind, group_size(run.instruction.attributes))
        counts[group] += times
        sizes[group] += times * _payload(run)
    collectives = tuple(
        Collective(kind, size, counts[kind, size], sizes[kind, size])
        for kind, size in sorted(counts)
    )
    return Costs(flops, int(total), int(hbm), collectives, tuple(sorted(uncounted)))


def _results(computation: Computation, name: str) -> tuple[Array, ...]:
    return computation[name].arrays if name in computation else ()


def _payload(run: Executed) -> int:
    inputs = sum(
        a.num_bytes for name in run.instruction.operands for a in _results(run.computation, name)
    )
    outputs = [a.num_bytes for a in run.instruction.arrays]
    if run.instruction.opcode.endswith("-start"):
        # Where a start's result holds operands and results, the larger half is the latter.
        return max(inputs, sum(outputs) - inputs)
    return max(inputs, sum(outputs))


def group_size(attributes: str) -> int:
    """Devices that take part in one group of a collective; 0: not told, all of them.

    Groups are listed, `{{0,1},{2,3}}`; or counted, `[2,4]<=[8]`; or axes of a mesh.
    """
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes)
    if mesh:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes)
    if iota:
        return int(iota[2])
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    if listed:
        return len(listed[1].split(","))
    return 2 if "source_target_pairs" in attributes else 0


def _flops(run: Executed, uncounted: set[str]) -> float:
    instruction, computation = run.instruction, run.computation
    if instruction.opcode == "dot":
        return _dot(instruction, computation, r"lhs_contracting_dims=\{([\d,]*)\}")
    if instruction.opcode == "convolution":
        return convolution_flops(
            instruction.attributes,
            lhs=_results(computation, instruction.operands[0])[0].shape,
            rhs=_results(computation, instruction.operands[1])[0].shape,
            out=instruction.arrays[0].shape,
        )
    if instruction.opcode == "custom-call":
        told = _estimate(instruction, "flops")
        if told is not None:
            return told
        contracted = r'"lhs_contracting_dimensions":\[([\d,"]*)\]'
        if re.search(contracted, instruction.attributes):
            return _dot(instruction, computation, contracted)
        target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
        if target and HEAVY_CALL.search(target[1]) and not instruction.called("calls"):
            uncounted.add(target[1])
    return 0.0


def _estimate(instruction: Instruction, name: str) -> float | None:
    """What the author of a kernel says that it costs."""
    told = re.search(rf'"cost_estimate":\{{[^}}]*"{name}":"?(\d+)', instruction.attributes)
    return float(told[1]) if told else None


def _dot(instruction: Instruction, computation: Computation, contracted: str) -> float:
    dims = re.search(contracted, instruction.attributes)
    lhs = _results(computation, instruction.operands[0])[0].shape
    depth = math.prod(lhs[int(d)] for d in re.findall(r"\d+", dims[1] if dims else ""))
    return 2.0 * math.prod(instruction.arrays[0].shape) * depth


def convolution_flops(
    attributes: str, *, lhs: tuple[int, ...], rhs: tuple[int, ...], out: tuple[int, ...]
) -> float:
    """FLOPs of a convolution, without those at padding and between dilated elements.

    The compiler writes batched matrix products as convolutions whose windows slide over the batch,
    so that nearly all positions of a window are outside: those are no work.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    if not labels:
        raise ValueError(f"a convolution without dim_labels: {attributes[:80]}")
    batch_groups = re.search(r"batch_group_count=(\d+)", attributes)
    window = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(f.split("=") for f in window[1].split()) if window else {}
    places = 1
    for i, label in enumerate(sorted(c for c in labels[1] if c.isdigit())):
        size, kernel, result = (
            shape[text.index(label)]
            for shape, text in ((lhs, labels[1]), (rhs, labels[2]), (out, labels[3]))
        )

        def field(name: str, default: str, axis: int = i) -> str:
            return fields[name].split("x")[axis] if name in fields else default

        stride, lhs_dilate = int(field("stride", "1")), int(field("lhs_dilate", "1"))
        rhs_dilate, low = int(field("rhs_dilate", "1")), int(field("pad", "0_0").split("_")[0])
        places *= sum(
            1
            for o in range(result)
            for k in range(kernel)
            if 0 <= (at := o * stride + k * rhs_dilate - low) < (size - 1) * lhs_dilate + 1
            and at % lhs_dilate == 0
        )
    features = rhs[labels[2].index("i")]  # of one feature group
    rows = out[labels[3].index("b")] * out[labels[3].index("f")]
    return 2.0 * places * features * rows / (int(batch_groups[1]) if batch_groups else 1)


def _traffic(program: Program, run: Executed) -> list[tuple[Array, float]]:
    """The arrays that an instruction reads and writes, and how much of them."""
    instruction, computation = run.instruction, run.computation
    opcode = instruction.opcode
    if opcode in FREE or opcode.endswith("-start") or opcode.startswith("async"):
        return []
    inputs = [_results(computation, name) for name in instruction.operands]
    if opcode.endswith("-done"):
        # What arrived was read where the start's operand lies.
        start = computation[instruction.operands[0]]
        source = _results(computation, start.operands[0]) if start.operands else ()
        space = source[0].space if source else 0
        read = [dataclasses.replace(a, space=space) for a in instruction.arrays]
        return [(a, 1.0) for a in (*read, *instruction.arrays)]
    if opcode in ("slice", "dynamic-slice", "gather"):
        space = inputs[0][0].space if inputs[0] else 0
        read = [dataclasses.replace(a, space=space) for a in instruction.arrays]
        return [(a, 1.0) for a in (*read, *instruction.arrays)]
    if opcode == "dynamic-update-slice":
        return [(a, 2.0) for a in inputs[1]]
    if opcode == "fusion":
        callee = program.computations[instruction.called("calls")[0]]
        return _fusion_traffic(callee)
    told = _estimate(instruction, "bytes_accessed") if opcode == "custom-call" else None
    if told is not None:
        return [(Array("u8", (int(told),), 0), 1.0)]
    return [(a, 1.0) for arrays in (*inputs, instruction.arrays) for a in arrays]


def _fusion_traffic(callee: Computation) -> list[tuple[Array, float]]:
    """Reads of parameters and writes of results: slices as slices, and what passes through not."""
    users: dict[str, list[Instruction]] = {}
    for inner in callee.values():
        for name in inner.operands:
            users.setdefault(name, []).append(inner)
    root = next(i for i in callee.values() if i.is_root)
    traffic: list[tuple[Array, float]] = []
    for inner in callee.values():
        if inner.opcode != "parameter" or not inner.arrays:
            continue
        uses = [u for u in users.get(inner.name, []) if not (u.is_root and u.opcode == "tuple")]
        for use in _behind_bitcasts(uses, users):
            if use.opcode in ("dynamic-slice", "slice", "gather") and use.arrays:
                space = inner.arrays[0].space
                traffic += [(dataclasses.replace(a, space=space), 1.0) for a in use.arrays]
            elif use.opcode == "dynamic-update-slice" and _is(callee, use.operands[0], inner):
                continue
            else:
                traffic += [(a, 1.0) for a in inner.arrays]
                break
    written = [callee[n] for n in root.operands] if root.opcode == "tuple" else [root]
    for result in written:
        result = _through_bitcasts(callee, result)
        if result.opcode == "parameter":
            continue
        if result.opcode == "dynamic-update-slice":
            space = result.arrays[0].space
            updates = callee[result.operands[1]].arrays
            traffic += [(dataclasses.replace(a, space=space), 1.0) for a in updates]
        else:
            traffic += [(a, 1.0) for a in result.arrays]
    return traffic


def _through_bitcasts(callee: Computation, instruction: Instruction) -> Instruction:
    while instruction.opcode == "bitcast":
        instruction = callee[instruction.operands[0]]
    return instruction


def _is(callee: Computation, name: str, parameter: Instruction) -> bool:
    return _through_bitcasts(callee, callee[name]).name == parameter.name


def _behind_bitcasts(
    uses: list[Instruction], users: dict[str, list[Instruction]]
) -> list[Instruction]:
    found: list[Instruction] = []
    for use in uses:
        if use.opcode == "bitcast" and not use.is_root:
            found += _behind_bitcasts(users.get(use.name, []), users)
        else:
            found.append(use)
    return found
