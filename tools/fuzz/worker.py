"""Runs cases in a process of its own, with limits on time and memory, and watches what they do."""

import dataclasses
import importlib
import multiprocessing
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from must_jax.errors import MAX_LENGTH, one_line

# Kinds of outcomes that are faults, beside those that a family tells itself.
CRASHED, HUNG = "crashed", "hung"

# Calls by which a file could run something or reach out.
_RUNNING = {
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "pty.spawn",
    "subprocess.Popen",
    "socket.connect",
    "socket.getaddrinfo",
}
_CHANGING = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one case.

    Attributes:
      index: of the case; with the seed, it makes the case again.
      what: was done to which file.
      kind: of outcome.
      message: of a refusal, or what went wrong.
      seconds: it took.
      memory: bytes that it took beyond what the process held before.
    """

    index: int
    what: str
    kind: str
    message: str
    seconds: float
    memory: int


class Family(Protocol):
    """A family of cases, made in the worker process from its keywords."""

    def prepare(self, index: int, rng: random.Random, folder: Path) -> str:
        """Writes a case into an empty folder, and says what was done. Not measured or watched."""

    def run(self, folder: Path) -> tuple[str, str]:
        """Runs what was prepared: the kind of outcome, and the message."""


def run_cases(
    family: str,
    keywords: dict[str, Any],
    *,
    indices: range,
    seed: int,
    memory: int,
    seconds: float,
) -> Iterator[Outcome]:
    """The outcomes of cases, in their order.

    Args:
      family: `module:class` below `fuzz`.
      keywords: of the class.
      indices: of the cases.
      seed: of all of them.
      memory: bytes of address space that a case may take beyond what the process holds.
      seconds: that a case may take; the process is killed then.
    """
    context = multiprocessing.get_context("spawn")
    worker = connection = None
    try:
        for index in indices:
            if worker is None:
                connection, theirs = context.Pipe()
                worker = context.Process(
                    target=_serve, args=(theirs, family, keywords, memory), daemon=True
                )
                worker.start()
                theirs.close()
                connection.recv()  # it is ready
            connection.send((index, seed))
            what, kind = "", CRASHED
            try:
                if connection.poll(60):
                    what = connection.recv()
                    if connection.poll(seconds):
                        yield connection.recv()
                        continue
                kind = HUNG
            except EOFError as error:
                worker.join()
                if not what:
                    raise RuntimeError(f"case {index} of {family} could not be made") from error
            message = f"exit code {worker.exitcode}" if kind == CRASHED else f"over {seconds} s"
            worker.kill()
            worker.join()
            worker = None
            yield Outcome(
                index=index, what=what, kind=kind, message=message, seconds=seconds, memory=0
            )
    finally:
        if worker is not None:
            worker.kill()
            worker.join()


def _serve(connection: Connection, family: str, keywords: dict[str, Any], memory: int) -> None:
    sys.dont_write_bytecode = True
    os.environ["JAX_PLATFORMS"] = "cpu"
    module, _, name = family.partition(":")
    cases: Family = getattr(importlib.import_module(f"fuzz.{module}"), name)(**keywords)
    watch = Watch()
    connection.send("ready")
    while True:
        try:
            index, seed = connection.recv()
        except EOFError:
            return
        root = Path(tempfile.mkdtemp(prefix="fuzz-"))
        folder = root / "inner" / "case"
        folder.mkdir(parents=True)
        what = one_line(cases.prepare(index, random.Random(f"{seed} {index}"), folder))
        connection.send(what)
        connection.send(_measured(cases, folder, watch=watch, index=index, what=what, limit=memory))
        shutil.rmtree(root, ignore_errors=True)


def _measured(
    cases: Family, folder: Path, *, watch: "Watch", index: int, what: str, limit: int
) -> Outcome:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + limit, hard))
    start = time.perf_counter()
    watch.start(folder)
    try:
        kind, message = cases.run(folder)
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        kind, message = "traceback", f"{error!r:.200} at {last.filename}:{last.lineno}"
    finally:
        done = watch.stop()
        seconds = time.perf_counter() - start
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    if done:
        kind, message = "reached out", "; ".join(done)
    return Outcome(
        index=index,
        what=what,
        kind=kind,
        message=one_line(message),
        seconds=seconds,
        memory=max(0, _status("VmHWM") - before),
    )


def _status(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return int(match[1]) * 1024


class Watch:
    """Notes what Python code runs, and what it changes outside one folder."""

    def __init__(self) -> None:
        """Hooks in; there is no way to unhook."""
        self._folder: str | None = None
        self._seen: list[str] = []
        sys.addaudithook(self._hook)

    def start(self, folder: Path) -> None:
        """Starts to note what is not below `folder`."""
        self._seen, self._folder = [], f"{folder}/"

    def stop(self) -> list[str]:
        """What was noted since the start."""
        self._folder = None
        return self._seen

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self._folder is None:
            return
        if event in _RUNNING:
            self._seen.append(f"{event} {args!r:.100}")
        elif event == "open":
            path, mode, flags = args
            writes = isinstance(mode, str) and set(mode) & set("wax+")
            writes = writes or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and isinstance(path, str | bytes | os.PathLike):
                self._changed(event, path)
        elif event in _CHANGING:
            path, descriptor = args[0], args[-1]
            if type(descriptor) is int and descriptor >= 0 and not os.path.isabs(path):
                path = os.path.join(os.readlink(f"/proc/self/fd/{descriptor}"), path)
            self._changed(event, path)

    def _changed(self, event: str, path: Any) -> None:
        full = os.path.abspath(os.fsdecode(path)) if not isinstance(path, int) else str(path)
        if self._folder and not f"{full}/".startswith(self._folder) and full != os.devnull:
            self._seen.append(f"{event} {full}")


def told_well(message: str) -> tuple[str, str]:
    """The kind of outcome that a refusal is, and its message."""
    if not message.isprintable() or len(message) > MAX_LENGTH + 20:
        return "unprintable or long", message
    return "refused", message


def captured(function: Any, *args: Any) -> tuple[Any, str, str]:
    """What a function gives, and all that was written to stdout and stderr, native code's too."""
    saved = [os.dup(1), os.dup(2)]
    files = [os.fdopen(os.memfd_create("output"), "w+b") for _ in saved]
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        for descriptor, file in enumerate(files, start=1):
            os.dup2(file.fileno(), descriptor)
        result = function(*args)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, old in enumerate(saved, start=1):
            os.dup2(old, descriptor)
            os.close(old)
    texts = []
    for file in files:
        file.seek(0)
        texts.append(file.read().decode("utf-8", "replace"))
        file.close()
    return result, *texts
