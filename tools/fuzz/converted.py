"""Damaged converted checkpoints, loaded as the trainer loads them."""

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from forged_stores import add_meeting_branches, add_zeros

from fuzz.mutations import mutate_bytes, mutate_json, take_away
from fuzz.worker import captured, told_well
from must_jax.convert import TOKENIZER, load_converted
from must_jax.convert.converted import SPEC_FILE
from must_jax.errors import UserError
from must_jax.tokenizer import load_tokenizer, tokenize

LOADED = "loaded"
_BOMBS = {
    "a GB of zeros in a node": lambda state: add_zeros(state, mebibytes=1000),
    "billions of names": lambda state: add_meeting_branches(state, ways=100),
}


class Converted:
    """Cases of one converted checkpoint with one file damaged or missing.

    Of those damaged, half have its digest made anew, as one who forges a checkpoint does.
    """

    def __init__(self, *, folder: str):
        """`folder` is a whole converted checkpoint."""
        self._folder = Path(folder)
        self._files = sorted(
            path.relative_to(self._folder) for path in self._folder.rglob("*") if path.is_file()
        )
        _load(self._folder)

    def prepare(self, index: int, rng: random.Random, folder: Path) -> str:
        """Copies the checkpoint and damages one file; each in turn. Of forty, one is a bomb."""
        shutil.copytree(self._folder, folder / "clip")
        if index % 40 == 39:
            what = rng.choice(sorted(_BOMBS))
            _BOMBS[what](folder / "clip/params/state")
            self._renew_digests(folder / "clip")
            return what
        name = self._files[index % len(self._files)]
        file, data = folder / "clip" / name, (self._folder / name).read_bytes()
        if gone := take_away(file, rng):
            return f"{name}: {gone}"
        if file.suffix == ".json" and rng.random() < 0.5:
            text, what = mutate_json(json.loads(data), rng)
            content = text.encode("utf-8", "surrogatepass")
        else:
            content, what = mutate_bytes(data, rng)
        file.write_bytes(content)
        if name != Path(SPEC_FILE) and rng.random() < 0.5:
            self._renew_digests(folder / "clip")
            what += ", with its digest"
        return f"{name}: {what}"

    def _renew_digests(self, clip: Path) -> None:
        record = json.loads((clip / SPEC_FILE).read_bytes())
        record["sha256"] = {
            path.relative_to(clip).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in clip.rglob("*")
            if path.is_file() and path.name != SPEC_FILE
        }
        (clip / SPEC_FILE).write_text(json.dumps(record), encoding="utf-8")

    def run(self, folder: Path) -> tuple[str, str]:
        """Loads it."""
        try:
            (params, ids), output, errors = captured(_load, folder / "clip")
        except UserError as error:
            return told_well(str(error))
        if output or errors:
            return "noise", f"{output}{errors}"
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
            return "not finite", ""
        if ids.shape != (2, 8):
            return "tokens", str(ids.shape)
        return LOADED, ""


def _load(folder: Path) -> tuple[Any, np.ndarray]:
    spec, params = load_converted(folder)
    tokenizer = load_tokenizer(folder / TOKENIZER, spec=spec.text)
    texts = ["a cat", "no"]
    return params, tokenize(texts, tokenizer=tokenizer, context_length=8)
