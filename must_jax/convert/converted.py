"""The converted checkpoint: a directory of parameters, architecture and tokenizer."""

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint import v1 as ocp

from must_jax.convert.fields import read_json
from must_jax.convert.source import Params
from must_jax.convert.stored_arrays import read_arrays
from must_jax.errors import UserError, first_line
from must_jax.local_files import open_regular, read_text
from must_jax.models import ClipSpec, TextTransformer, VisionTransformer

SPEC_FILE = "clip.json"
PARAMS = "params"
TOKENIZER = "tokenizer"
FORMAT = 1
# Bytes of all but the parameters: the tokenizer (32 MiB of SigLIP 2's), what describes the arrays.
_MAX_OVERHEAD = 2**28


def check_target(
    target: Path, *, overwrite: bool, marker: str = SPEC_FILE, kind: str = "converted checkpoint"
) -> None:
    """Refuses a target that must not be written.

    Args:
      target: the folder that is to be written.
      overwrite: whether it may replace one of its kind.
      marker: a file that tells the kind.
      kind: what to call it in messages.

    Raises:
      UserError: it exists, and `overwrite` is false or it is of another kind.
    """
    if (target.exists() or target.is_symlink()) and not overwrite:
        raise UserError(f"{target}: exists already; name another one, or pass --overwrite")
    if target.exists() and not (target / marker).is_file():
        raise UserError(f"{target}: is no {kind}, so it will not be overwritten")


@contextlib.contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Gives a temporary directory beside `target`, which replaces `target` if the block succeeds.

    If it fails, nothing is left behind and an existing `target` is untouched.

    Raises:
      UserError: it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error
    try:
        fresh = scratch / "new"
        fresh.mkdir()
        yield fresh
        if target.exists():
            target.rename(scratch / "old")
        try:
            fresh.rename(target)
        except OSError:
            if (scratch / "old").exists():
                (scratch / "old").rename(target)
            raise
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_converted(folder: Path, *, spec: ClipSpec, params: Params, source: str) -> None:
    """Writes `clip.json` and the parameters {"vision": ..., "text": ...} into an empty folder.

    `source` is recorded as where the checkpoint came from.
    """
    # Weights hardly compress (by a tenth), and Orbax's copies would double the memory.
    context = ocp.Context()
    context.array.saving.use_compression = False
    context.memory.deepcopy_host_arrays = False
    with context:
        ocp.save(folder / PARAMS, params)
    record = {"format": FORMAT, "source": source, **json.loads(spec.to_json())}
    record["sha256"] = {
        path.relative_to(folder).as_posix(): _sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / SPEC_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_files(path: Path, *, num_bytes: int) -> None:
    """Refuses files that aren't those that were written, nor as they were.

    Orbax notices most damage, though not in weights, and tells it in pages of tracebacks. It also
    follows links, out of the folder too.

    Args:
      path: of the checkpoint.
      num_bytes: that the parameters take.
    """
    digests = read_json(path / SPEC_FILE).get("sha256")
    if not isinstance(digests, dict):
        raise UserError(f"{path / SPEC_FILE}: tells no digests of the other files; convert again")
    found = {name for part in (PARAMS, TOKENIZER) for name in _files_below(path, part)}
    for name in sorted(found ^ digests.keys()):
        reason = "was added" if name in found else "is missing"
        raise UserError(f"{path}: damaged ({name}: {reason}); convert again")
    size = sum((path / name).stat().st_size for name in found)
    if size > num_bytes + _MAX_OVERHEAD:
        raise UserError(f"{path}: has {size:,} bytes, for {num_bytes:,} of parameters")
    for name, digest in digests.items():
        reason = "was changed"
        try:
            if _sha256(path / name) == digest:
                continue
        except OSError as error:
            reason = str(error.strerror or error)
        raise UserError(f"{path}: damaged ({name}: {reason}); convert again")


def _files_below(path: Path, part: str) -> Iterator[str]:
    """Names of all files in a folder of the checkpoint, relative to the checkpoint."""
    if (path / part).is_symlink():
        raise UserError(f"{path / part}: is a link; copy the files themselves")
    for folder, folders, names in os.walk(path / part):
        for file in (Path(folder, name) for name in folders + names):
            if file.is_symlink():
                raise UserError(f"{file}: is a link; copy the files themselves")
        yield from (Path(folder, name).relative_to(path).as_posix() for name in names)


def read_converted_spec(path: str | os.PathLike) -> ClipSpec:
    """The architecture of a converted checkpoint, without its parameters.

    Raises:
      UserError: `path` is missing, damaged, or no converted checkpoint.
    """
    path = Path(path).absolute()
    try:
        found = path.is_dir()
    except OSError as error:  # too long a name
        raise UserError(f"{path}: no usable path ({error.strerror})") from error
    if not found:
        raise UserError(
            f"{path}: no such directory; make a converted checkpoint with "
            f"python tools/convert_clip_weights.py SOURCE {path}"
        )
    if not (path / SPEC_FILE).is_file():
        raise UserError(
            f"{path}: no converted checkpoint (no {SPEC_FILE}); make one with "
            f"python tools/convert_clip_weights.py {path} TARGET"
        )
    try:
        text = read_text(path / SPEC_FILE)
        record = json.loads(text)
        if record.get("format") != FORMAT:
            raise UserError(
                f"{path / SPEC_FILE}: format {record.get('format')!r} is not {FORMAT}; convert the "
                "checkpoint again with this version"
            )
        return ClipSpec.from_json(text)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path / SPEC_FILE}: damaged ({error!r}); convert again") from error


def load_converted(path: str | os.PathLike) -> tuple[ClipSpec, Params]:
    """The architecture and the float32 numpy parameters of a converted checkpoint.

    Returns:
      The spec, and {"vision": ..., "text": ...}. The tokenizer lies in `path`/tokenizer.

    Raises:
      UserError: `path` is missing, damaged, or no converted checkpoint.
    """
    path = Path(path).absolute()
    spec = read_converted_spec(path)
    shapes = _shapes(spec, where=path)
    _check_files(path, num_bytes=4 * sum(map(math.prod, shapes.values())))
    try:
        arrays = read_arrays(path / PARAMS, shapes=shapes)
    except UserError:
        raise
    except Exception as error:
        # Tensorstore raises many types for missing and damaged files, with pages of its own words.
        reason = first_line(error).partition(" [")[0]
        raise UserError(f"{path / PARAMS}: damaged ({reason}); convert again") from error
    return spec, unflatten_dict(arrays, sep=".")


def _shapes(spec: ClipSpec, *, where: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of an architecture's parameters, by name."""
    vision, text = spec.vision, spec.text
    try:
        spec.check_numbers()
        if vision.image_size % vision.patch_size:
            raise ValueError(f"image size {vision.image_size}, patch size {vision.patch_size}")
        images = jax.ShapeDtypeStruct((1, vision.image_size, vision.image_size, 3), np.float32)
        ids = jax.ShapeDtypeStruct((1, text.context_length), np.int32)
        init = {
            "vision": (VisionTransformer(vision, spec.embed_dim).init, images),
            "text": (TextTransformer(text, spec.embed_dim).init, ids),
        }
        expected = {
            name: jax.eval_shape(function, jax.random.key(0), inputs)["params"]
            for name, (function, inputs) in init.items()
        }
    except Exception as error:
        # Whatever flax says of sizes and names that make no model.
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{where / SPEC_FILE}: describes no CLIP ({reason})") from error
    return {name: tuple(leaf.shape) for name, leaf in flatten_dict(expected, sep=".").items()}
