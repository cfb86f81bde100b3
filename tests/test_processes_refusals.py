"""Flags of several processes that do not fit, and processes that do not find each other."""

import socket

import pytest
import tiny_run
from commands import write_config
from forked_main import free_address, told_by

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
    config = write_config(tiny_run.write_all(tmp_path / "inputs"))
    common = [f"--config={config}", f"--workdir={workdir}"]
    cases = dict(REFUSALS)
    address = free_address()
    for process, told in [(0, f"not all of the 2 processes came to {address}"), (1, "not answer")]:
        # In vain: each waits for its own peer.
        flags = flags_of(address=address if process == 0 else free_address(), process=process)
        cases[f"alone as {process}"] = ([*flags, "--connect_seconds=3"], told)
    with socket.create_server(("", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        cases["a port in use"] = (flags_of(address, process=0), "do not find each other")
        commands = [([*common, *flags], {}) for flags, _ in cases.values()]
        started = starter.start(commands, devices=1)
        codes = starter.finish(started)
    for name, code, out, err in zip(cases, codes, *told_by(started), strict=True):
        assert code == 2, (name, code, err)
        # Of a port in use the runtime complains too.
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, (name, err)
        assert cases[name][1] in errors[0], (name, err)
        assert "Traceback" not in err, name
        assert len(err.splitlines()) == 1 or name == "a port in use", (name, err)
        assert not out, name
    assert not workdir.exists()
