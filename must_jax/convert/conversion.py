"""Converts a CLIP checkpoint to the one layout that the trainer reads."""

import os
import time
from pathlib import Path

import jax

from must_jax.convert.converted import TOKENIZER, check_target, write_converted, written_whole
from must_jax.convert.families import open_checkpoint
from must_jax.convert.source import Params, read_params
from must_jax.convert.summary import Summary, peak_memory
from must_jax.convert.tokenizer_files import check_tokenizer, put_tokenizer
from must_jax.errors import UserError
from must_jax.models.spec import ClipSpec


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    tokenizer: str | os.PathLike | None = None,
    activation: str | None = None,
    overwrite: bool = False,
) -> Summary:
    """Converts a Hugging Face or OpenCLIP folder, or an OpenAI `.pt` file.

    Args:
      source: the folder, or the file (TorchScript archive or state dict).
      target: the directory to write; it appears whole or not at all.
      tokenizer: a folder of Hugging Face tokenizer files, or one with OpenAI's vocabulary file.
        None looks in the source folder, or beside the file.
      activation: `quick_gelu` or `gelu`, for a `.pt` file of a model whose activation isn't
        OpenAI's. No tensor tells it. A folder's configuration does.
      overwrite: replaces a converted checkpoint at `target`.

    Raises:
      UserError: the source is unreadable, of an unknown layout, or doesn't fit its layout; the
        tokenizer is missing or another's; the target exists or can't be written.
    """
    start = time.perf_counter()
    source, target = Path(source).absolute(), Path(target).absolute()
    for path in (source, target, Path(tokenizer or source)):
        _check_name(path)
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    check_target(target, overwrite=overwrite)
    checkpoint = open_checkpoint(source, activation=activation)
    spec = checkpoint.spec
    beside = source if source.is_dir() else source.parent
    vocabulary = Path(tokenizer).absolute() if tokenizer else beside
    advice = "" if tokenizer else "; put it there or pass --tokenizer DIR"
    check_tokenizer(vocabulary, advice=advice)
    with written_whole(target) as folder:
        put_tokenizer(vocabulary, folder / TOKENIZER, spec=spec.text)
        params = read_params(checkpoint, where=str(source))
        write_converted(folder, spec=spec, params=params, source=source.name)
    return Summary(
        spec=spec,
        layout=checkpoint.layout.name,
        num_parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
        seconds=time.perf_counter() - start,
        peak_memory=peak_memory(),
    )


def _check_name(path: Path) -> None:
    """Refuses a path that the file system can't even look for, such as too long a name."""
    try:
        path.exists()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no usable path ({error})") from error


def read_checkpoint(source: Path, *, activation: str | None) -> tuple[ClipSpec, str, Params]:
    """The architecture, the layout's name and the parameters of a checkpoint.

    Raises:
      UserError: see `convert`.
    """
    checkpoint = open_checkpoint(source, activation=activation)
    params = read_params(checkpoint, where=str(source))
    return checkpoint.spec, checkpoint.layout.name, params
