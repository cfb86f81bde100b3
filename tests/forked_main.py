"""`must_jax.main` in processes that need not import it: one that has becomes each of them.

As a module, `Starter` starts and finishes them; as a program, it is the process that forks.
"""

import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]


# Of the library that connects CPU processes, whose threads break each other's lines.
GLOO = re.compile(r"\[Gloo\].*|.*peer ranks.*|[\s:\d]*")


@dataclasses.dataclass(frozen=True)
class Started:
    """A process, and the files that it writes to: stdout, stderr, and what it opened how often.

    The last is not there with `--profile`: `jax.profiler` calls audit hooks in the name of threads
    that are running elsewhere, which ends in a crash now and then.
    """

    pid: int
    out: pathlib.Path
    err: pathlib.Path
    opened: pathlib.Path


class Starter:
    """Starts commands of `must_jax.main`; `folder` is for what they print and compile."""

    def __init__(self, folder):
        self._folder = folder
        self._count = 0
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=ROOT,
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
                # A run repeats the programs of the one before; compiling takes longer than they do.
                "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _ask(self, **request):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, commands, *, devices):
        """Starts them at once, flags and environment of each, on as many virtual devices each."""
        started = []
        for flags, environment in commands:
            self._count += 1
            files = [self._folder / f"{self._count}.{end}" for end in ("out", "err", "opened")]
            told = {
                "flags": [str(flag) for flag in flags],
                "files": [str(file) for file in files],
                "devices": devices,
                "environment": environment,
            }
            started.append(Started(self._ask(start=told), *files))
        return started

    def finish(self, started, *, timeout=600):
        """Exit codes, negative where a signal ended a process, as it does all at the timeout."""
        return self._ask(finish=[process.pid for process in started], timeout=timeout)

    def close(self):
        """Ends the forking process."""
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


def free_address():
    """HOST:PORT that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def slurm_task(process, *, count, job=1):
    """What SLURM tells a task of a job by; the port follows from the job's number."""
    told = {"JOB_ID": job, "STEP_NODELIST": "127.0.0.1", "NTASKS": count, "PROCID": process}
    return {f"SLURM_{name}": str(value) for name, value in {**told, "LOCALID": process}.items()}


def told_by(started):
    """What each of them wrote to stdout and to stderr."""
    out = [
        "\n".join(line for line in p.out.read_text().splitlines() if not GLOO.fullmatch(line))
        for p in started
    ]
    return out, [p.err.read_text() for p in started]


def _become(main, *, flags, files, devices, environment):
    """Turns this process into a command. What it opens is counted, whoever opens it."""
    import atexit

    import jax

    out, err, opened = files
    for number, path in enumerate((out, err), start=1):
        with open(path, "w") as file:
            os.dup2(file.fileno(), number)
    counts = collections.Counter()

    def count(event, arguments):
        if event == "open" and isinstance(arguments[0], str):
            counts[arguments[0]] += 1

    if not any(flag.startswith("--profile") for flag in flags):
        atexit.register(lambda: pathlib.Path(opened).write_text(json.dumps(counts)))
        sys.addaudithook(count)
    os.environ.update(environment)
    jax.config.update("jax_num_cpu_devices", devices)
    sys.argv = ["must_jax", *flags]
    main.run()


def _finish(pids, timeout):
    codes, deadline = {}, time.monotonic() + timeout
    while len(codes) < len(pids):
        for pid in set(pids) - set(codes):
            if time.monotonic() > deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


def _serve():
    from must_jax import main

    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            pid = os.fork()
            if not pid:
                _become(main, **request["start"])
                return
            answer = pid
        else:
            answer = _finish(request["finish"], request["timeout"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
