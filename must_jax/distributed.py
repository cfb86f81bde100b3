"""Several processes as one run: how they find each other, agree, and end together."""

import atexit
import contextlib
import dataclasses
import functools
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np

# No public name reaches the clusters that JAX detects, nor the service that processes talk by.
from jax._src import clusters
from jax._src import distributed as jax_distributed
from jax.experimental import multihost_utils

from must_jax.errors import StoppedError, UserError, one_line

FAILURE_KEY = "must_jax/failure"
LOOK_SECONDS = 1.0  # between looks at whether another process failed
FAREWELL_SECONDS = 10.0  # that a failing process waits for the others to have heard of it
# Kubernetes is asked in an indexed job only: elsewhere a pod is alone.
INDEXED_JOB = "JOB_COMPLETION_INDEX"


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a process ends the run: its number, one line, and the exit code of all."""

    process: int
    reason: str
    code: int


def initialize(
    *, coordinator_address: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Joins the processes of this run; a lone process starts nothing.

    Without arguments the surroundings tell: a TPU pod, SLURM, GKE, Open MPI, as JAX detects them.
    No device may have been asked for before.

    Args:
      coordinator_address: HOST:PORT of process 0.
      num_processes: 1 means alone, whatever the surroundings.
      process_id: from 0 to num_processes - 1.

    Raises:
      UserError: some arguments are missing or don't fit, or the others are not found.
    """
    given = (coordinator_address, num_processes, process_id)
    if num_processes == 1 and coordinator_address is None and not process_id:
        return
    if given == (None, None, None):
        if _detected_count() == 1:
            return
    else:
        _check(coordinator_address, num_processes, process_id)
    try:
        jax.distributed.initialize(
            coordinator_address=coordinator_address,
            num_processes=num_processes,
            process_id=process_id,
            # With all three given, a cluster around has no say.
            cluster_detection_method=None if coordinator_address is None else "deactivate",
        )
    except Exception as error:
        # gRPC, sockets and clusters raise many types.
        raise UserError(f"the processes do not find each other: {_first_line(error)}") from error
    done = threading.Event()
    atexit.register(done.set)
    client = jax_distributed.global_state.client
    threading.Thread(target=_watch, args=(client, done), daemon=True).start()


def _detected_count() -> int:
    """Processes of the cluster around, 1 outside of any."""
    try:
        for cluster in clusters.ClusterEnv._cluster_types:
            if cluster.opt_in_only_method or (cluster.name == "k8s" and _no_indexed_job()):
                continue
            if cluster.is_env_present():
                return cluster.get_process_count()
    except Exception as error:
        raise UserError(
            f"the cluster around does not tell its processes ({_first_line(error)}); give "
            "--coordinator_address, --num_processes and --process_id, or --num_processes=1"
        ) from error
    return 1


def _no_indexed_job() -> bool:
    return INDEXED_JOB not in os.environ


def _check(address: str | None, num_processes: int | None, process_id: int | None) -> None:
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
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(
            f"--coordinator_address is {address!r}; it must be HOST:PORT of process 0, such as "
            "10.0.0.1:1234"
        )


def gather(value: Any) -> list[Any]:
    """The JSON values of all processes, in their order. All must call it, in the same order."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array([text.size], np.int32)).reshape(-1)
    # Powers of two, so that few programs are compiled.
    padded = np.zeros(1 << int(lengths.max() - 1).bit_length(), np.uint8)
    padded[: text.size] = text
    rows = multihost_utils.process_allgather(padded).reshape(len(lengths), -1)
    return [json.loads(bytes(row[:n])) for row, n in zip(rows, lengths, strict=True)]


def from_first(value: Any) -> Any:
    """The first process's JSON value, on every process. All must call it."""
    return gather(value)[0]


def require_same(facts: Mapping[str, Any]) -> None:
    """Refuses to go on where JSON values differ between processes. All must call it.

    Raises:
      UserError: on all of them; names the fact and the processes.
    """
    everywhere = gather(dict(facts))
    for process, theirs in enumerate(everywhere):
        for name, value in everywhere[0].items():
            if theirs[name] != value:
                raise UserError(
                    f"{name} is {theirs[name]} on process {process}, and {value} on process 0; "
                    "every process must be started with the same command, on the same files"
                )


@functools.cache
def _replicate(sharding: jax.sharding.NamedSharding) -> Any:
    whole = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return jax.jit(lambda array: array, out_shardings=whole)


def whole(array: jax.Array) -> np.ndarray:
    """An array on the host, wherever its parts lie. All processes must call it."""
    if isinstance(array, jax.Array) and not (
        array.is_fully_addressable or array.is_fully_replicated
    ):
        array = _replicate(array.sharding)(array)
    return np.asarray(array)


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """An exception that leaves this block is told to the other processes, which end too."""
    try:
        yield
    except StoppedError:
        raise  # all of them stop
    except Exception as error:
        announce(error)
        raise


def announce(error: BaseException) -> None:
    """Tells the other processes that this one fails; they end as soon as they hear of it."""
    client = jax_distributed.global_state.client
    if client is None:
        return
    told = isinstance(error, UserError)
    reason = str(error) if told else f"{type(error).__name__}: {_first_line(error)}"
    failure = Failure(jax_distributed.global_state.process_id, reason, 2 if told else 1)
    # Another process may have been first, or the service may be gone already.
    with contextlib.suppress(Exception):
        client.key_value_set(FAILURE_KEY, json.dumps(dataclasses.astuple(failure)))


_ending = threading.Lock()


def end(code: int) -> NoReturn:
    """Ends this process at once, when the others have heard why, or `FAREWELL_SECONDS` later.

    The usual way out would wait for processes that are stuck in a collective.
    """
    if not _ending.acquire(blocking=False):
        time.sleep(2 * FAREWELL_SECONDS)  # the other thread is about to end all
    client = jax_distributed.global_state.client
    if client is not None:
        with contextlib.suppress(Exception):
            client.wait_at_barrier(f"{FAILURE_KEY}/heard", int(1000 * FAREWELL_SECONDS))
        if jax_distributed.global_state.process_id == 0:
            time.sleep(1)  # it serves the others, who would complain of its absence
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_running() -> bool:
    """Whether this process is one of several. Asks no device."""
    return jax_distributed.global_state.client is not None


def _watch(client: Any, done: threading.Event) -> None:
    """Ends this process, even in the midst of a collective, when another one fails."""
    own = jax_distributed.global_state.process_id
    while not done.wait(LOOK_SECONDS):
        try:
            failure = Failure(*json.loads(client.key_value_try_get(FAILURE_KEY)))
        except Exception:  # there is none: the client raises for want of it
            continue
        if failure.process != own:
            if not _ending.locked():
                told = one_line(f"process {failure.process} stopped: {failure.reason}")
                print(f"error: {told}", file=sys.stderr, flush=True)
            end(failure.code)


def _first_line(error: BaseException) -> str:
    return one_line(str(error).strip().partition("\n")[0])
