"""What accelerators can do, as their makers publish it."""

import dataclasses


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
# What JAX calls them. The PCIe and NVL cards of the same name are slower, and unknown here.
DEVICE_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "NVIDIA H100 80GB HBM3": "h100",
}


def known_chip(device_kind: str) -> Chip | None:
    """The chip that a `jax.Device.device_kind` names, or None."""
    name = DEVICE_KINDS.get(device_kind)
    return CHIPS[name] if name else None
