"""Damaged checkpoints of every family, through the program that converts them."""

import contextlib
import gzip
import hashlib
import importlib.util
import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fuzz.archives import rewrite_archive, rewrite_safetensors
from fuzz.mutations import make_odd_file, mutate_bytes, mutate_json
from fuzz.worker import captured
from must_jax.convert import load_converted
from must_jax.errors import MAX_LENGTH

PROGRAM = Path(__file__).parents[1] / "convert_clip_weights.py"
REFUSED, SAME, OTHER_WEIGHTS, OTHER_MODEL = "refused", "same", "other weights", "other model"

_WEIGHTS = (".pt", ".bin", ".safetensors")


class Checkpoints:
    """Cases of all families in turn, each with one file damaged."""

    def __init__(self, *, seeds: str, sources: dict[str, str]):
        """Converts each whole checkpoint, to know what it becomes.

        Args:
          seeds: the folder that `checkpoint_seeds.write_seeds` wrote.
          sources: what it returned.
        """
        self._seeds, self._sources = Path(seeds), sources
        spec = importlib.util.spec_from_file_location("convert_clip_weights", PROGRAM)
        assert spec
        assert spec.loader
        self._program = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self._program)
        self._case: dict[str, Any] = {}
        self._clean: dict[str, tuple[Any, str]] = {}
        for name in sources:
            target = self._seeds / "converted" / name
            status, _, errors = self._convert(self._seeds / sources[name], target)
            assert status == 0, errors
            self._clean[name] = _content(target)
            shutil.rmtree(target)

    def _convert(self, source: Path, target: Path) -> tuple[int, str, str]:
        old, sys.argv = sys.argv, ["convert_clip_weights.py", str(source), str(target)]
        try:
            return captured(self._program.main)
        finally:
            sys.argv = old

    def prepare(self, index: int, rng: random.Random, folder: Path) -> str:
        """Copies a whole checkpoint and damages one of its files."""
        name = sorted(self._sources)[index % len(self._sources)]
        source = self._seeds / self._sources[name]
        home = source if source.is_dir() else source.parent
        copy = folder / "source"
        shutil.copytree(home, copy)
        files = sorted(path for path in copy.iterdir())
        weights = [path for path in files if path.suffix in _WEIGHTS]
        file = rng.choice(weights if rng.random() < 0.5 else files)
        canary = folder / "canary"
        before = file.read_bytes()
        try:
            after, what = _damaged(file, before, rng, canary)
        except OSError:
            after, what = None, ""
        if rng.random() < 0.03:
            what = make_odd_file(file, rng)
        elif after is None:
            file.unlink()
            what = "missing"
        else:
            file.write_bytes(after)
        self._case = {
            "name": name,
            "source": copy if source.is_dir() else copy / source.name,
            "canary": canary,
            "is_config": file.suffix not in _WEIGHTS,
            "is_zip": file.suffix in (".pt", ".bin"),
            "bytes_alone": "rewritten" not in what,
        }
        return f"{name}/{file.name}: {what}"

    def run(self, folder: Path) -> tuple[str, str]:
        """Converts, and judges what was printed and what was written."""
        case, target = self._case, folder / "target"
        before = _listing(folder)
        status, output, errors = self._convert(case["source"], target)
        written = {path for path in _listing(folder) ^ before if not path[0].startswith("target")}
        if written or case["canary"].exists():
            return "wrote elsewhere", f"{sorted(written)[:3]}"
        if status == 2:
            if target.exists():
                return "half-written", errors
            if output or errors.count("\n") != 1 or not errors.startswith("error: "):
                return "not one line", f"{output!r:.200} {errors!r:.400}"
            if not errors[:-1].isprintable() or len(errors) > MAX_LENGTH + 20:
                return "unprintable or long", f"{len(errors)} letters: {errors:.200}"
            return REFUSED, errors.strip()
        if status != 0:
            return "status", f"{status} {errors}"
        if errors:
            return "noise", errors
        params, digest = _content(target)
        clean, clean_digest = self._clean[case["name"]]
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
            return "not finite", ""
        same = jax.tree.structure(params) == jax.tree.structure(clean) and all(
            np.array_equal(a, b)
            for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(clean), strict=True)
        )
        if same:
            return (SAME if digest == clean_digest else OTHER_MODEL), ""
        if case["is_zip"] and case["bytes_alone"]:
            # Every entry has a checksum.
            return "changed behind a checksum", ""
        return OTHER_WEIGHTS, ""


def _damaged(file: Path, data: bytes, rng: random.Random, canary: Path) -> tuple[bytes | None, str]:
    if rng.random() < 0.02:
        return None, "missing"
    if rng.random() < 0.5:
        return mutate_bytes(data, rng)
    if file.suffix == ".json":
        text, what = mutate_json(json.loads(data), rng)
        return text.encode("utf-8", "surrogatepass"), what
    if file.suffix in (".pt", ".bin"):
        content, what = rewrite_archive(data, rng, canary)
        return content, f"rewritten, {what}"
    if file.suffix == ".safetensors":
        return rewrite_safetensors(data, rng)
    if file.suffix == ".gz":
        if rng.random() < 0.3:
            return gzip.compress(bytes(500 * 2**20), 1), "gzip bomb"
        content, what = mutate_bytes(gzip.decompress(data), rng)
        return gzip.compress(content), f"inside, {what}"
    return mutate_bytes(data, rng)


def _listing(folder: Path) -> set[tuple[str, int, int]]:
    """What lies below a folder and beside it: paths, sizes and times."""
    found = set()
    for path in folder.parent.parent.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                status = path.stat()
                found.add((_name(path, folder), status.st_size, status.st_mtime_ns))
    return found


def _name(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def _content(target: Path) -> tuple[Any, str]:
    """The parameters of a converted checkpoint, and a digest of all else in it."""
    spec, params = load_converted(target)
    sha256 = hashlib.sha256(repr(spec).encode())
    for path in sorted((target / "tokenizer").iterdir()):
        sha256.update(path.name.encode() + path.read_bytes())
    return params, sha256.hexdigest()
