"""A plan as numbers, and as a table."""

import dataclasses
from typing import Any

from must_jax.planning.chips import roofline
from must_jax.planning.measure import Measured
from must_jax.planning.topology import Topology

GIB = 2**30
NOTES = (
    "FLOPs and bytes: counted in the compiled program, a loop's body times its trips; FLOPs of "
    "matrix products alone. Bytes are an estimate, up to 15 % below the compiler's own.",
    "Bound: peak bf16 rate, HBM and links all busy at once, no latency; real steps take longer.",
    "Host: each image is decoded once for two views.",
)


def record(
    measured: Measured, topology: Topology, *, plain_flops: float, num_images: int
) -> dict[str, Any]:
    """One batch size as fields for JSON; bytes, FLOPs and seconds are a chip's, for one step.

    Args:
      plain_flops: of one image.
      num_images: of an epoch.
    """
    chips, batch = len(topology.devices), measured.batch_size
    train, evaluation = measured.train, measured.evaluation
    seconds = {"train": train.seconds, "eval": evaluation.seconds if evaluation else None}
    fields: dict[str, Any] = {
        "topology": topology.name,
        "chips": chips,
        "hosts": topology.num_hosts,
        "batch_size": batch,
        "fits": measured.fits,
        "refusal": train.refusal or (evaluation.refusal if evaluation else "") or None,
        "compile_seconds": round(sum(value or 0 for value in seconds.values()), 2),
        "compile_seconds_by_step": seconds,
        "peak_bytes": measured.peak_bytes,
        "hbm_bytes_of_chip": topology.chip.hbm_bytes if topology.chip else None,
        "flops": None,  # of a program that the compiler refused, nothing is known
        "bytes_accessed": None,
        "collectives": None,
    }
    if train.memory is None or train.costs is None:
        return fields
    costs = train.costs
    plain = plain_flops * batch / chips
    fields |= {
        "peak_bytes_train": train.memory.peak,
        "peak_bytes_eval": evaluation.memory.peak if evaluation and evaluation.memory else None,
        "memory": dataclasses.asdict(train.memory),
        "flops": costs.flops,
        "flops_plain": plain,
        "flops_ratio": costs.flops / plain,
        "flops_uncounted": list(costs.uncounted),
        "bytes_accessed": costs.bytes_accessed,
        "bytes_accessed_hbm": costs.hbm_bytes,
        "collectives": [dataclasses.asdict(c) for c in costs.collectives],
        "eval_flops": evaluation.costs.flops if evaluation and evaluation.costs else None,
    }
    if topology.chip:
        bound = roofline(
            topology.chip,
            flops=costs.flops,
            hbm_bytes=costs.hbm_bytes,
            collectives=costs.collectives,
            num_chips=chips,
        )
        rate = batch / bound.seconds
        fields |= {
            "bound_seconds": bound.seconds,
            "bound_by": bound.limit,
            "bound_parts": dataclasses.asdict(bound),
            "images_per_second": rate,
            "images_per_second_per_chip": rate / chips,
            "epochs_per_hour": 3600 * rate / num_images,
            "host_images_per_second": rate / topology.num_hosts,
            "host_views_per_second": 2 * rate / topology.num_hosts,
        }
    return fields


def table(fields: dict[str, Any]) -> str:
    """The fields of `record` for the terminal."""
    chips, hosts = fields["chips"], fields["hosts"]
    fits = "fits" if fields["fits"] else f"does NOT fit ({fields['refusal'] or 'too large'})"
    lines = [
        f"{fields['topology']}: {chips} chips, {hosts} hosts; batch {fields['batch_size']} "
        f"({fields['batch_size'] / chips:g} a chip) {fits}"
    ]

    def row(name: str, value: str) -> None:
        lines.append(f"  {name:22}{value}")

    if "memory" in fields:
        parts = ", ".join(f"{k} {v / GIB:.2f}" for k, v in fields["memory"].items())
        row("peak memory a chip", f"{fields['peak_bytes_train'] / GIB:.2f} GiB ({parts})")
        if fields["peak_bytes_eval"]:
            row("  while evaluating", f"{fields['peak_bytes_eval'] / GIB:.2f} GiB")
        row(
            "FLOPs a chip",
            f"{fields['flops']:.3g}, {fields['flops_ratio']:.3f} of the plain "
            f"{fields['flops_plain']:.3g} (every token through every block)",
        )
        if fields["flops_uncounted"]:
            row("  not counted", ", ".join(fields["flops_uncounted"]))
        row(
            "bytes a chip",
            f"{fields['bytes_accessed']:.3g}, of them HBM {fields['bytes_accessed_hbm']:.3g}",
        )
        for c in fields["collectives"]:
            group = c["group_size"] or chips
            row(c["kind"], f"{c['count']} x, {c['num_bytes'] / 1e6:.3g} MB, {group} chips each")
    if "bound_seconds" in fields:
        bounds = ", ".join(f"{k} {1e3 * v:.1f}" for k, v in fields["bound_parts"].items())
        row("step at least", f"{1e3 * fields['bound_seconds']:.1f} ms ({bounds})")
        row(
            "at most",
            f"{fields['images_per_second']:.0f} images/s "
            f"({fields['images_per_second_per_chip']:.0f} a chip), "
            f"{fields['epochs_per_hour']:.1f} epochs/h",
        )
        row(
            "hosts must deliver",
            f"{fields['host_images_per_second']:.0f} images/s each "
            f"({fields['host_views_per_second']:.0f} views), "
            f"{fields['images_per_second']:.0f} in total",
        )
    row("compiled in", f"{fields['compile_seconds']:.0f} s")
    return "\n".join(lines)
