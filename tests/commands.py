"""The command line as a process, on the little run of `tiny_run`."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def write_config(folder, **fields):
    """A config file of the run on what `tiny_run.write_all` wrote, with some fields changed."""
    path = folder / "config.py"
    path.write_text(
        "import pathlib, sys\n"
        f"sys.path.append({str(ROOT / 'tests')!r})\n"
        "import tiny_run\n"
        "def get_config():\n"
        f"    config = tiny_run.config(pathlib.Path({str(folder)!r}))\n"
        f"    config.update_from_flattened_dict({fields!r})\n"
        "    return config\n"
    )
    return path


# Root may write where modes say that nobody may; without these capabilities it may not.
_BOUND = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")


def start(*flags, cache=None, devices=8, bound_by_modes=False, **how):
    """Starts the command; `cache` is a folder of compiled programs that others have left."""
    prefix = _BOUND if bound_by_modes and os.geteuid() == 0 else ()
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    if cache is not None:
        env["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", "must_jax.main", *map(str, flags)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **how,
    )


def finish(process):
    """Exit code, stdout and stderr."""
    stdout, stderr = process.communicate(timeout=300)
    return process.returncode, stdout, stderr


def metrics_of(workdir):
    """The lines of metrics.jsonl without what depends on the clock."""
    path = workdir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in lines]


def result_of(workdir):
    """result.json without what depends on the clock."""
    return json.loads((workdir / "result.json").read_text()) | {"seconds": None}


def workers_of(process):
    """Process ids of those that make batches, of a run that has them."""
    threads = pathlib.Path(f"/proc/{process.pid}/task").glob("*/children")
    children = [pid for thread in threads for pid in thread.read_text().split()]
    told = {pid: pathlib.Path(f"/proc/{pid}/cmdline").read_text() for pid in children}
    return [int(pid) for pid, command in told.items() if "spawn_main" in command]
