"""What a conversion did, and what it took."""

import dataclasses
import re
import resource
import sys
from pathlib import Path

from must_jax.models.spec import ClipSpec


def peak_memory() -> int:
    """The most memory that this process has had, in bytes."""
    try:
        # Unlike what the system call tells, this begins anew with every program.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        if match := re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE):
            return int(match[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts in bytes, others in KiB.
    return peak if sys.platform == "darwin" else peak * 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What a conversion did, and what it took.

    Attributes:
      spec: the architecture.
      layout: the kind of source.
      num_parameters: of both towers.
      seconds: the time it took.
      peak_memory: the most memory that the process had up to its end, in bytes.
    """

    spec: ClipSpec
    layout: str
    num_parameters: int
    seconds: float
    peak_memory: int

    def __str__(self) -> str:
        vision, text = self.spec.vision, self.spec.text
        return (
            f"{self.layout}: ViT {vision.depth}x{vision.width} patch {vision.patch_size} image "
            f"{vision.image_size}, text {text.depth}x{text.width}, "
            f"embedding {self.spec.embed_dim}, {vision.activation}, "
            f"logit scale {self.spec.logit_scale:.4g}, "
            f"{self.num_parameters:,} parameters, {self.seconds:.1f} s, "
            f"peak memory {self.peak_memory / 2**30:.2f} GiB"
        )
