"""Where compiled programs are kept, and that a start without such a place goes on."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from must_jax.compile_cache import default_folder, make_room

ROOT = pathlib.Path(__file__).parents[1]
# Compiles, and tells where programs are kept and how many of them were found.
PROGRAM = """
import json, jax, jax.numpy as jnp
from must_jax.compile_cache import use_compile_cache
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
use_compile_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((8, 8))).block_until_ready()
told = jax.config.values
print(json.dumps({
    "folder": told["jax_compilation_cache_dir"],
    "max_bytes": told["jax_compilation_cache_max_size"],
    "hits": sum(name.endswith("/cache_hits") for name in hits),
}))
"""


def run(home, *, warnings=0, **environment):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=inherited | {"HOME": str(home), "JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if line.strip() != "warnings.warn("]
    assert len(told) == warnings, done.stderr
    return json.loads(done.stdout)


def test_the_next_start_finds_the_programs_of_the_one_before(tmp_path):
    first, second = run(tmp_path), run(tmp_path)
    folder = tmp_path / ".cache" / "must_jax" / "xla"
    assert first["folder"] == second["folder"] == str(folder)
    assert first["hits"] == 0
    assert second["hits"] > 0
    # JAX would look through all programs at each that it keeps.
    assert first["max_bytes"] == -1
    # What it holds is run.
    assert folder.stat().st_mode & 0o777 == 0o700


def test_what_a_user_set_stays(tmp_path):
    told = run(
        tmp_path,
        JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"),
        JAX_COMPILATION_CACHE_MAX_SIZE="1000000",
    )
    assert told["folder"] == str(tmp_path / "mine")
    assert told["max_bytes"] == 1000000
    assert not (tmp_path / ".cache").exists()


@pytest.mark.parametrize("home", ["a file", "nowhere"])
def test_without_a_place_to_write_nothing_is_kept_and_nothing_breaks(tmp_path, home):
    (tmp_path / "a file").write_text("")
    told = run("/proc/nowhere" if home == "nowhere" else tmp_path / home)
    assert told["folder"] is None


def test_a_damaged_entry_is_compiled_anew(tmp_path):
    run(tmp_path)
    folder = tmp_path / ".cache" / "must_jax" / "xla"
    entries = list(folder.glob("*-cache"))
    assert entries
    for path in entries:
        path.write_bytes(path.read_bytes()[:20])
    assert run(tmp_path, warnings=len(entries))["hits"] == 0


def test_what_was_used_last_stays(tmp_path):
    (tmp_path / "folder").mkdir()
    for name, written, used in [("old", 1, 2), ("used", 1, 5), ("new", 4, 4), ("older", 1, 1)]:
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (used, written))
    left = {path.name: path for path in tmp_path.iterdir()}
    make_room(tmp_path, 400)
    assert {path.name for path in tmp_path.iterdir()} == left.keys()
    make_room(tmp_path, 399)
    assert left.keys() - {path.name for path in tmp_path.iterdir()} == {"older"}
    make_room(tmp_path, 200)
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "used", "new"}


def test_the_folder_follows_the_standard(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert default_folder() == tmp_path / "caches" / "must_jax" / "xla"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the standard has us ignore
    assert default_folder() == tmp_path / ".cache" / "must_jax" / "xla"


# Each process prints what it uses: a folder that both see, then one of its own, then both's again
# which one of them can't write.
SEVERAL = """
import json, os, sys, jax
from must_jax import distributed
from must_jax.compile_cache import use_compile_cache
address, index, homes = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
distributed.initialize(coordinator_address=address, num_processes=2, process_id=index)
for home in homes:
    os.environ["XDG_CACHE_HOME"] = home
    jax.config.update("jax_compilation_cache_dir", None)
    use_compile_cache()
    print(json.dumps(jax.config.values["jax_compilation_cache_dir"]))
"""


@pytest.mark.multiprocess
def test_several_processes_share_a_folder_or_use_none(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = str(tmp_path / "shared")
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-c", SEVERAL, address, str(index)),
                *(shared, str(tmp_path / f"of_{index}"), ["/proc/nowhere", shared][index]),
            ],
            cwd=ROOT,
            env={k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION")}
            | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    told = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    expected = [f"{shared}/must_jax/xla", None, None]
    for lines in told:
        assert [json.loads(line) for line in lines if not line.startswith("[Gloo]")] == expected
    assert not list((tmp_path / "shared").rglob("mark-*"))
