"""FLOPs, bytes and collectives of an optimised program, each loop's body times its trips.

Counted here and not by the compiler's cost analysis, which counts a body once.
"""

import dataclasses
import math
import re
from collections import Counter

from must_jax.planning.hlo import Computation, Executed, Instruction, Program, executed
from must_jax.planning.traffic import estimate, results, traffic

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
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
            for array, times in traffic(program, run):
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


def _payload(run: Executed) -> int:
    inputs = sum(
        a.num_bytes for name in run.instruction.operands for a in results(run.computation, name)
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
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes)
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
            lhs=results(computation, instruction.operands[0])[0].shape,
            rhs=results(computation, instruction.operands[1])[0].shape,
            out=instruction.arrays[0].shape,
        )
    if instruction.opcode == "custom-call":
        told = estimate(instruction, "flops")
        if told is not None:
            return told
        contracted = r'"lhs_contracting_dimensions":\[([\d,"]*)\]'
        if re.search(contracted, instruction.attributes):
            return _dot(instruction, computation, contracted)
        target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
        if target and HEAVY_CALL.search(target[1]) and not instruction.called("calls"):
            uncounted.add(target[1])
    return 0.0


def _dot(instruction: Instruction, computation: Computation, contracted: str) -> float:
    dims = re.search(contracted, instruction.attributes)
    lhs = results(computation, instruction.operands[0])[0].shape
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
    return 2.0 * places * features * rows
