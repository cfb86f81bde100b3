"""Flags of several processes that do not fit, and processes that do not find each other."""

import collections
import socket

import pytest
from forked_main import free_address, slurm_task, told_by

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


def flags_of(address="127.0.0.1:1234", count=2, process=1):
    told = {"coordinator_address": address, "num_processes": count, "process_id": process}
    return [f"--{name}={value}" for name, value in told.items() if value is not None]


REFUSALS = {
    "no address": (flags_of(address=None), "go together; give all three"),
    "no count": (flags_of(count=None), "go together; give all three"),
    "no id": (flags_of(process=None), "go together; give all three"),
    "an id past the end": (flags_of(process=2), "--process_id is 2 and --num_processes 2"),
    "an id below 0": (flags_of(process=-1), "--process_id is -1"),
    "no processes": (flags_of(count=0, process=0), "--num_processes 0"),
    "no port": (flags_of(address="10.0.0.1"), "'10.0.0.1'; it must be HOST:PORT"),
    "no host": (flags_of(address=":1234"), "':1234'; it must be HOST:PORT"),
    "a port that is none": (flags_of(address="host:99999"), "it must be HOST:PORT"),
    "no time": ([*flags_of(), "--connect_seconds=0"], "--connect_seconds=0 must be positive"),
}


def test_flags_that_do_not_fit_are_refused(starter, tmp_path):
    workdir = tmp_path / "run"
    common = ["--config=configs/tiny.py", f"--workdir={workdir}"]
    cases = dict(REFUSALS)
    address = free_address()
    for process, told in [(0, f"not all of the 2 processes came to {address}"), (1, "not answer")]:
        # In vain: each waits for its own peer.
        flags = flags_of(address=address if process == 0 else free_address(), process=process)
        cases[f"alone as {process}"] = ([*flags, "--connect_seconds=3"], told)
    with socket.create_server(("", 0)) as taken:
        port = str(taken.getsockname()[1])
        in_use = flags_of(f"127.0.0.1:{port}", process=0)
        cases["a port in use"] = (in_use, f"port {port} of this host, where")
        surroundings = collections.defaultdict(dict)
        cases["a cluster's port in use"] = ([], cases["a port in use"][1])
        surroundings["a cluster's port in use"] = {
            **slurm_task(0, count=2),
            "JAX_COORDINATOR_PORT": port,
        }
        commands = [([*common, *cases[name][0]], surroundings[name]) for name in cases]
        started = starter.start(commands, devices=1)
        codes = starter.finish(started)
    for name, code, out, err in zip(cases, codes, *told_by(started), strict=True):
        assert code == 2, (name, code, err)
        assert err.startswith("error: "), (name, err)
        assert cases[name][1] in err, (name, err)
        assert len(err.splitlines()) == 1, (name, err)
        assert not out, name
    assert not workdir.exists()
