"""Several processes as one run: how they find each other, agree, and end together."""

import atexit
import contextlib
import dataclasses
import functools
import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np

# No public name reaches the service that processes talk by.
from jax._src import distributed as jax_distributed
from jax.experimental import multihost_utils

from must_jax import cluster, lifelines
from must_jax.errors import (
    EXIT_STOPPED,
    EXIT_USER_ERROR,
    StoppedError,
    UserError,
    first_line,
    flush_output,
    print_error,
)

FAILURE_KEY = "must_jax/failure"
LOOK_SECONDS = 1.0  # between looks at whether another process failed
FAREWELL_SECONDS = 10.0  # that a failing process waits for the others to have heard of it
CONNECT_SECONDS = 300.0  # hosts of a pod may still be installing when the first is ready
# After that long without a sign of life, given by a thread of the runtime's own, it aborts the
# others; its default of 100 s costs a pod more than a network that is silent for so long.
HEARTBEAT_SECONDS = 30


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a process ends the run: its number, one line, and the exit code of all."""

    process: int
    reason: str
    code: int


def initialize(
    *,
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    connect_seconds: float = CONNECT_SECONDS,
) -> None:
    """Joins the processes of this run; a lone process starts nothing.

    Without arguments the surroundings tell: a TPU pod, SLURM, GKE, Open MPI, as JAX detects them.
    No device may have been asked for before.

    Args:
      coordinator_address: HOST:PORT of process 0.
      num_processes: 1 means alone, whatever the surroundings.
      process_id: from 0 to num_processes - 1.
      connect_seconds: to wait for the others; past them the process ends with exit code 2.

    Raises:
      UserError: some arguments are missing or don't fit, or the others are not found.
    """
    given = (coordinator_address, num_processes, process_id)
    if num_processes == 1 and coordinator_address is None and not process_id:
        return
    in_cluster = given == (None, None, None)
    if in_cluster:
        num_processes = cluster.detected_count()
        if num_processes == 1:
            return
    else:
        cluster.check_flags(*given)
    if connect_seconds <= 0:
        raise UserError(f"--connect_seconds={connect_seconds:g} must be positive")
    # The runtime would abort with a stack trace, and is given longer than this.
    timer = threading.Timer(connect_seconds, _nobody, (*given, connect_seconds))
    timer.daemon = True
    timer.start()
    try:
        if coordinator_address is None:
            coordinator_address, process_id = cluster.detected_place(connect_seconds)
        if process_id == 0:
            cluster.check_port(coordinator_address)
        jax.distributed.initialize(
            coordinator_address=coordinator_address,
            num_processes=num_processes,
            process_id=process_id,
            # With all three given, a cluster around has no say.
            cluster_detection_method=None if in_cluster else "deactivate",
            initialization_timeout=int(connect_seconds) + 60,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except UserError:
        raise
    except Exception as error:
        # gRPC, sockets and clusters raise many types.
        raise UserError(f"the processes do not find each other: {first_line(error)}") from error
    finally:
        timer.cancel()
    state: Any = jax_distributed.global_state
    done = threading.Event()
    leave = lifelines.hold(
        state.client,
        process=state.process_id,
        host=state.coordinator_address.rpartition(":")[0].strip("[]"),
        when_lost=_end_without,
    )
    atexit.register(leave)
    atexit.register(done.set)
    threading.Thread(target=_watch, args=(done,), daemon=True).start()


def _nobody(
    address: str | None, num_processes: int | None, process_id: int | None, seconds: float
) -> NoReturn:
    """Ends a process whose peers have not come; it is stuck in the runtime meanwhile."""
    if address is None:
        told = "not all processes of the cluster came"
    elif process_id == 0:
        told = f"not all of the {num_processes} processes came to {address}, where this one waits"
    else:
        told = (
            f"process 0 did not answer at {address}, or did not see all {num_processes} processes"
        )
    print_error(
        f"{told} within {seconds:g} s; look whether all were started, with the same address and "
        "number, and whether the port is open; --connect_seconds waits longer"
    )
    os._exit(EXIT_USER_ERROR)


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


_announced = threading.Event()


def announce(error: BaseException) -> None:
    """Tells the other processes that this one fails; they end as soon as they hear of it.

    An error of the runtime may come from a process that is gone; what ends this one then is
    waited for.
    """
    client = jax_distributed.global_state.client
    if client is None or _announced.is_set():
        return
    if is_of_runtime(error) and "RESOURCE_EXHAUSTED" not in str(error):
        time.sleep(HEARTBEAT_SECONDS)
    _announced.set()
    reason, code = f"{type(error).__name__}: {first_line(error)}", 1
    if isinstance(error, UserError):
        reason, code = str(error), error.exit_code
    failure = Failure(jax_distributed.global_state.process_id, reason, code)
    # Another process may have been first, or the service may be gone already.
    with contextlib.suppress(Exception):
        client.key_value_set(FAILURE_KEY, json.dumps(dataclasses.astuple(failure)))


def is_of_runtime(error: BaseException) -> bool:
    """Whether the runtime raised it; some of its functions raise ValueError, as "UNKNOWN: ..."."""
    return isinstance(error, jax.errors.JaxRuntimeError) or (
        isinstance(error, ValueError) and bool(re.match("[A-Z_]+: ", str(error)))
    )


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
    leave(code)


def leave(code: int) -> NoReturn:
    """Ends this process at once, as one whose end is known to the others."""
    if is_running() and jax_distributed.global_state.process_id == 0:
        # It serves the others, who would complain of its absence, and hear of things later.
        time.sleep(3 * LOOK_SECONDS)
    lifelines.say_farewell()
    flush_output()
    os._exit(code)


def is_running() -> bool:
    """Whether this process is one of several. Asks no device."""
    return jax_distributed.global_state.client is not None


def heard(key: str) -> str | None:
    """What was told to all processes under a key, None if nothing was; waits for nobody."""
    client = jax_distributed.global_state.client
    try:
        return client.key_value_try_get(key) if client is not None else None
    except Exception:  # the client raises for want of it, or when the service has ended
        return None


def _watch(done: threading.Event) -> None:
    """Ends this process, even in the midst of a collective, when another one fails."""
    own = jax_distributed.global_state.process_id
    while not done.wait(LOOK_SECONDS):
        text = heard(FAILURE_KEY)
        if text is None:
            continue
        failure = Failure(*json.loads(text))
        if failure.process != own:
            if not _ending.locked():
                print_error(f"process {failure.process} stopped: {failure.reason}")
            end(failure.code)


def _end_without(process: int) -> None:
    """Ends this process for want of another."""
    if not _ending.acquire(blocking=False):
        return  # this one is ending already
    print_error(
        f"process {process} is gone: it was killed, or its host or the network failed; started "
        "again, the run goes on from its last checkpoint"
    )
    leave(EXIT_STOPPED)
