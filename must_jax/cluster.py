"""Where the cluster around says that processes meet, and whether what flags say instead can be."""

import contextlib
import errno
import os
import re
import socket
from collections.abc import Iterator
from typing import Any

# No public name reaches the clusters that JAX detects.
from jax._src import clusters

from must_jax.errors import UserError, first_line

# Kubernetes is asked in an indexed job only: elsewhere a pod is alone.
INDEXED_JOB = "JOB_COMPLETION_INDEX"


def detected_count() -> int:
    """Processes of the cluster around, 1 outside of any.

    Raises:
      UserError: there is one, and it does not tell.
    """
    with _asking():
        around = _around()
        return around.get_process_count() if around else 1


def detected_place(timeout_seconds: float) -> tuple[str, int]:
    """HOST:PORT of process 0, and the number of this process, as the cluster around tells them.

    Raises:
      UserError: it does not tell.
    """
    with _asking():
        around = _around()
        address = os.environ.get("JAX_COORDINATOR_ADDRESS") or around.get_coordinator_address(
            timeout_secs=int(timeout_seconds),
            override_coordinator_port=os.environ.get("JAX_COORDINATOR_PORT"),
        )
        return address, around.get_process_id()


def _around() -> Any:
    for cluster in clusters.ClusterEnv._cluster_types:
        if cluster.opt_in_only_method or (cluster.name == "k8s" and _no_indexed_job()):
            continue
        if cluster.is_env_present():
            return cluster
    return None


@contextlib.contextmanager
def _asking() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise UserError(
            f"the cluster around does not tell its processes ({first_line(error)}); give "
            "--coordinator_address, --num_processes and --process_id, or --num_processes=1"
        ) from error


def check_port(address: str) -> None:
    """Whether process 0 can be met at its address; where it can't, the runtime may crash.

    Raises:
      UserError: another program has the port, or this one has no right to it.
    """
    port = address.rpartition(":")[2]
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socket.socket(family) as probe:
        # As the runtime does: connections that a run before left behind are no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(port)))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                return  # not the port's fault
            raise UserError(
                f"port {port} of this host, where the processes are to meet, can't be opened "
                f"({os.strerror(error.errno)}); give all processes another one in "
                "--coordinator_address, or in a cluster as JAX_COORDINATOR_PORT"
            ) from error


def quiet_tpu_library() -> None:
    """Keeps libtpu, which planning brings along, from looking for its pod where there is no chip.

    JAX has it skip the metadata server there, upon which it complains in several lines of stderr
    that nobody told it its hosts.
    """
    if "TPU_SKIP_MDS_QUERY" in os.environ:
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("TPU_HOST_BOUNDS", "1,1,1")


def _no_indexed_job() -> bool:
    return INDEXED_JOB not in os.environ


def check_flags(
    address: str | None, num_processes: int | None, process_id: int | None
) -> tuple[str, int, int]:
    """The flags, all of them given.

    Raises:
      UserError: one is missing, or they don't fit.
    """
    if address is None or num_processes is None or process_id is None:
        raise UserError(
            "--coordinator_address, --num_processes and --process_id go together; give all three, "
            "or none where a TPU pod, SLURM or GKE tells them"
        )
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id is {process_id} and --num_processes {num_processes}; the processes are "
            "numbered from 0 to num_processes - 1"
        )
    host, _, port = address.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
        raise UserError(
            f"--coordinator_address is {address!r}; it must be HOST:PORT of process 0, such as "
            "10.0.0.1:1234"
        )
    return address, num_processes, process_id
