"""Places for a run that are no folder, can't be one, or hold what no run left there."""

import contextlib
import ctypes
import os
import random
from collections.abc import Callable
from pathlib import Path

from fuzz.mutations import make_odd_file
from must_jax.checkpoint import complete_steps
from must_jax.checkpoint_writer import Checkpoints
from must_jax.metrics import MetricWriter
from must_jax.resume import write_config


def _file_as_parent(folder: Path) -> str:
    (folder / "file").write_text("")
    return "file/run"


def _without(mode: int, *, of: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / "closed" / "run" / "checkpoints" / "3").mkdir(parents=True)
        (folder / of).chmod(mode)
        return "closed/run"

    return make


def _links_to(target: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / "link").symlink_to(target)
        return "link/run" if target == "link" else "link"

    return make


def _holding(*names: str, folders: bool = False) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        for name in names:
            path = folder / "run" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if folders:
                path.mkdir()
            else:
                path.write_bytes(b"\xff\0{")
        return "run"

    return make


WORKDIRS: dict[str, Callable[[Path], str]] = {
    "long name": lambda folder: "a" * 300,
    "long path": lambda folder: "/".join(["a" * 200] * 30),
    "undecodable name": lambda folder: "run\udcff",
    "control characters": lambda folder: "run\x1b[2J\n",
    "file as parent": _file_as_parent,
    "file": lambda folder: _file_as_parent(folder).partition("/")[0],
    "parent that may not be read": _without(0o000, of="closed"),
    "parent that may not be entered": _without(0o600, of="closed"),
    "may not be read": _without(0o000, of="closed/run"),
    "may not be written": _without(0o500, of="closed/run"),
    "checkpoints that may not be read": _without(0o000, of="closed/run/checkpoints"),
    "checkpoints that may not be listed": _without(0o300, of="closed/run/checkpoints"),
    "checkpoint that may not be read": _without(0o000, of="closed/run/checkpoints/3"),
    "link in a circle": _links_to("link"),
    "link to nothing": _links_to("nowhere"),
    "file for checkpoints": _holding("checkpoints"),
    "file for a checkpoint": _holding("checkpoints/3"),
    "mark of a checkpoint alone": _holding("checkpoints/3/_CHECKPOINT_METADATA"),
    "checkpoint of a large step": _holding(f"checkpoints/{'9' * 200}", folders=True),
    "folder for metrics.jsonl": _holding("metrics.jsonl", folders=True),
    "folder for config.json": _holding("config.json", folders=True),
    "junk": _holding("metrics.jsonl", "config.json", "result.json"),
    "file for tensorboard": _holding("tensorboard"),
    "URL": lambda folder: "gs://bucket/run",
    "odd file": lambda folder: "odd",
}


def make_workdir(folder: Path, rng: random.Random) -> tuple[str, str]:
    """Makes one below `folder`: what `--workdir` is given, and what was made."""
    what = rng.choice(sorted(WORKDIRS))
    name = WORKDIRS[what](folder)
    if what == "odd file":
        what = make_odd_file(folder / name, rng)
    return (name if "://" in name else f"{folder}/{name}"), what


def begin_in(workdir: str, config: object) -> None:
    """What a run does to its workdir before its first step."""
    complete_steps(workdir)
    with contextlib.closing(Checkpoints(workdir, to_keep=2, step=0)):
        write_config(workdir, config)
        MetricWriter(workdir, step=0).close()


def open_all(folder: Path) -> None:
    """Gives back what was taken from folders, to remove them."""
    for path in ("closed", "closed/run", "closed/run/checkpoints", "closed/run/checkpoints/3"):
        with contextlib.suppress(OSError):
            (folder / path).chmod(0o700)


def be_bound_by_modes() -> None:
    """Root may read and write what modes forbid to everyone; without two capabilities it can't."""
    if os.geteuid():
        return
    libc = ctypes.CDLL(None)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # the version of the call, this process
    sets = (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets):
        return
    dac_override, dac_read_search = 1, 2
    sets[0] &= ~(1 << dac_override | 1 << dac_read_search) & 0xFFFFFFFF
    libc.capset(header, sets)
