"""The time that a program takes at the least on a chip of known peak rates."""

import dataclasses
from collections.abc import Iterable

from must_jax.chips import Chip
from must_jax.planning.costs import Collective


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
