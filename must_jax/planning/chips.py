"""What accelerators can do, as their makers publish it, and the bound that follows."""

import dataclasses
from collections.abc import Iterable

from must_jax.planning.costs import Collective


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip.

    Attributes:
      flops: dense bfloat16 FLOP/s.
      hbm_bytes: of main memory; for a TPU the compiler keeps a part and refuses what doesn't fit.
      hbm_bandwidth: bytes/s.
      link_bandwidth: bytes/s that one chip sends to its neighbours, all links together.
    """

    flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float


# TPU: cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e (peak compute per chip (bf16), HBM capacity
# and bandwidth, interchip interconnect bandwidth). H100: NVIDIA H100 Tensor Core GPU datasheet,
# SXM5, without sparsity; NVLink's 900 GB/s count both directions.
CHIPS = {
    "v4": Chip(flops=275e12, hbm_bytes=32 * 2**30, hbm_bandwidth=1228e9, link_bandwidth=2400e9 / 8),
    "v5e": Chip(flops=197e12, hbm_bytes=16 * 2**30, hbm_bandwidth=819e9, link_bandwidth=1600e9 / 8),
    "v5p": Chip(
        flops=459e12, hbm_bytes=95 * 2**30, hbm_bandwidth=2765e9, link_bandwidth=4800e9 / 8
    ),
    "v6e": Chip(
        flops=918e12, hbm_bytes=32 * 2**30, hbm_bandwidth=1640e9, link_bandwidth=3584e9 / 8
    ),
    "h100": Chip(flops=989e12, hbm_bytes=80e9, hbm_bandwidth=3350e9, link_bandwidth=450e9),
}


@dataclasses.dataclass(frozen=True)
class Bound:
    """Seconds that a step takes at the least, by what it is that takes them."""

    compute: float
    memory: float
    communication: float

    @property
    def seconds(self) -> float:
        """The largest: they overlap perfectly."""
        return max(self.compute, self.memory, self.communication)

    @property
    def limit(self) -> str:
        """Which is the largest."""
        parts = dataclasses.asdict(self)
        return max(parts, key=lambda name: parts[name])


def link_seconds(collectives: Iterable[Collective], *, num_chips: int, bandwidth: float) -> float:
    """Time on the links, of collectives that use all of them at once, without latency.

    An all-reduce moves its bytes twice, the others once, less the share that stays.
    """
    seconds = 0.0
    for collective in collectives:
        size = collective.group_size or num_chips
        passes = 2 if collective.kind == "all-reduce" else 1
        share = 1 if collective.kind == "collective-permute" else (size - 1) / size
        seconds += passes * share * collective.num_bytes / bandwidth
    return seconds


def roofline(
    chip: Chip,
    *,
    flops: float,
    hbm_bytes: float,
    collectives: Iterable[Collective],
    num_chips: int,
) -> Bound:
    """The bound for a program at peak rates."""
    return Bound(
        compute=flops / chip.flops,
        memory=hbm_bytes / chip.hbm_bandwidth,
        communication=link_seconds(collectives, num_chips=num_chips, bandwidth=chip.link_bandwidth),
    )
