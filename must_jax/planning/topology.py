"""Devices by the name of their topology, on a machine that has none of them."""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import topologies

from must_jax.chips import CHIPS, Chip
from must_jax.errors import UserError, first_line

TPU_AXES = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2}
# What libtpu asks the machine for: the smallest of each kind, whatever is compiled for.
ACCELERATORS = {"v4": "v4-8", "v5e": "v5litepod-4", "v5p": "v5p-8", "v6e": "v6e-4"}
MEGACORE = frozenset({"v4", "v5p"})
KNOWN = "v4:XxYxZ, v5e:XxY, v5p:XxYxZ, v6e:XxY (such as v5e:16x16), h100:1, h100:8, cpu:N"
TPU_INSTALL = "pip install -c constraints.txt -e '.[plan]'"
CUDA_INSTALL = "pip install --no-deps jax-cuda12-plugin=={0} jax-cuda12-pjrt=={0}"
# Triton's tiles are found by trying them on the device: without one, cuBLAS takes the products.
CUDA_OPTIONS = {"xla_gpu_enable_triton_gemm": False}
# Of an H100 SXM5 80 GB: NVIDIA's H100 whitepaper and the CUDA programming guide, compute
# capability 9.0. The compiler asks for the numbers where it would ask the device.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3350000000000 l2_cache_size: 52428800 device_memory_size: 80000000000
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for; `chip` is None where nothing is known of them: virtual CPUs."""

    name: str
    devices: Sequence[Any]
    num_hosts: int
    chip: Chip | None
    compiler_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def open_topology(name: str) -> Topology:
    """The devices of `v5e:16x16` and the like.

    `cpu:N` are N virtual devices, made if no program has asked for devices yet.

    Raises:
      UserError: no such topology, or the compiler for it is not installed.
    """
    kind, _, sizes = name.partition(":")
    unknown = UserError(f"--topology={name} is not known; known are {KNOWN}")
    axes = 1 if kind in ("cpu", "h100") else TPU_AXES.get(kind, 0)
    if not re.fullmatch("[1-9][0-9]{,3}(x[1-9][0-9]{,3})*", sizes) or sizes.count("x") + 1 != axes:
        raise unknown
    count = math.prod(map(int, sizes.split("x")))
    if kind == "cpu":
        return Topology(name, _virtual(count), 1, None)
    if kind == "h100" and count not in (1, 8):
        raise unknown
    package = "libtpu" if kind in TPU_AXES else "jax_plugins.xla_cuda12"
    if not _is_installed(package):
        install = TPU_INSTALL if kind in TPU_AXES else CUDA_INSTALL.format(jax.__version__)
        raise UserError(f"{package} is missing, which compiles for {kind}; {install}")
    try:
        devices = _tpu(name) if kind in TPU_AXES else _h100(count)
    except Exception as error:
        # Compilers refuse sizes that no machine has, each with errors of its own.
        told = f"--topology={name} is refused by its compiler: {first_line(error)}"
        raise UserError(told) from error
    hosts = len({device.process_index for device in devices})
    return Topology(name, devices, hosts, CHIPS[kind], CUDA_OPTIONS if kind == "h100" else {})


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def _tpu(name: str) -> Sequence[Any]:
    kind = name.partition(":")[0]
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", ACCELERATORS[kind])
    # A chip of two cores is one device, as JAX sees it on the machine.
    options = {"chip_config_name": "megacore"} if kind in MEGACORE else {}
    return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices


def _h100(count: int) -> Sequence[Any]:
    return topologies.get_topology_desc(
        platform="cuda", topology_name="h100", topology=f"1x1x{count}", target_config=H100
    ).devices


def _virtual(count: int) -> Sequence[Any]:
    with contextlib.suppress(RuntimeError):  # devices exist already
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(f"--topology=cpu:{count} needs more than the {len(devices)} devices here")
    return devices[:count]
