"""Converts a CLIP checkpoint to the one layout that the trainer reads."""

import dataclasses
import math
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from must_jax.convert import table
from must_jax.convert.architecture import count_blocks, hugging_face_spec, openai_spec
from must_jax.convert.bpe import OPENAI_VOCABULARY, write_tokenizer
from must_jax.convert.converted import (
    SPEC_FILE,
    TOKENIZER,
    Params,
    check_target,
    write_converted,
    written_whole,
)
from must_jax.convert.safetensors_files import read_folder
from must_jax.convert.torch_archive import read_torch_archive
from must_jax.errors import UserError
from must_jax.models.layers import ACTIVATIONS
from must_jax.models.spec import ClipSpec
from must_jax.tokenizer import FILES, has_tokenizer, load_tokenizer

Tensors = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a conversion did: architecture, kind of source, parameters, seconds taken."""

    spec: ClipSpec
    layout: str
    num_parameters: int
    seconds: float

    def __str__(self) -> str:
        vision, text = self.spec.vision, self.spec.text
        return (
            f"{self.layout}: ViT {vision.depth}x{vision.width} patch {vision.patch_size} image "
            f"{vision.image_size}, text {text.depth}x{text.width}, "
            f"embedding {self.spec.embed_dim}, {vision.activation}, "
            f"logit scale {self.spec.logit_scale:.4g}, "
            f"{self.num_parameters:,} parameters, {self.seconds:.1f} s"
        )


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    tokenizer: str | os.PathLike | None = None,
    activation: str | None = None,
    overwrite: bool = False,
) -> Summary:
    """Converts a Hugging Face CLIP folder or an OpenAI `.pt` file.

    Args:
      source: the folder, or the file (TorchScript archive or state dict).
      target: the directory to write; it appears whole or not at all.
      tokenizer: a folder of Hugging Face tokenizer files, or one with OpenAI's vocabulary file.
        None looks in the source folder, or beside the file.
      activation: `quick_gelu` or `gelu`, for a `.pt` file of a model whose activation isn't
        OpenAI's. No tensor tells it. A folder's `config.json` does.
      overwrite: replaces a converted checkpoint at `target`.

    Raises:
      UserError: the source is unreadable, of an unknown layout, or doesn't fit its layout; the
        tokenizer is missing or another's; the target exists or can't be written.
    """
    start = time.perf_counter()
    source, target = Path(source).absolute(), Path(target).absolute()
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    check_target(target, overwrite=overwrite)
    spec, layout, params = read_checkpoint(source, activation=activation)
    beside = source if source.is_dir() else source.parent
    vocabulary = Path(tokenizer).absolute() if tokenizer else beside
    _check_tokenizer(vocabulary, given=tokenizer is not None)
    with written_whole(target) as folder:
        _put_tokenizer(vocabulary, folder / TOKENIZER)
        try:
            load_tokenizer(folder / TOKENIZER, spec=spec.text)
        except UserError as error:
            # The copy is about to vanish: the original is the one to look at.
            told = str(error).replace(str(folder / TOKENIZER), str(vocabulary))
            raise UserError(told) from error
        write_converted(folder, spec=spec, params=params, source=source.name)
    return Summary(spec, layout, _count(params), time.perf_counter() - start)


def read_checkpoint(source: Path, *, activation: str | None) -> tuple[ClipSpec, str, Params]:
    """The architecture, the layout's name and the parameters of a checkpoint.

    Raises:
      UserError: see `convert`.
    """
    if activation is not None and activation not in ACTIVATIONS:
        raise UserError(f"activation {activation!r} is unknown; use {' or '.join(ACTIVATIONS)}")
    spec: ClipSpec | None
    if source.is_dir():
        if activation is not None:
            raise UserError(f"{source}: its config.json gives the activation; leave it out")
        layout, tensors, spec = table.HUGGING_FACE, *_read_hugging_face(source)
    else:
        layout, tensors, spec = table.OPENAI, *_read_openai(source, activation or "quick_gelu")
    if spec is None:
        depths = {
            "vision": count_blocks(tensors, "visual.transformer.resblocks."),
            "text": count_blocks(tensors, "transformer.resblocks."),
        }
        problems = table.name_problems(tensors, layout=layout, depths=depths)
    else:
        depths = {"vision": spec.vision.depth, "text": spec.text.depth}
        problems = table.name_problems(tensors, layout=layout, depths=depths)
        problems += table.shape_problems(tensors, layout=layout, spec=spec)
    if problems or spec is None:
        raise UserError(f"{source}: does not fit the {layout.name} layout; {'; '.join(problems)}")
    return spec, layout.name, table.convert_tensors(tensors, layout=layout, spec=spec)


def _read_hugging_face(folder: Path) -> tuple[Tensors, ClipSpec]:
    if (folder / SPEC_FILE).is_file():
        raise UserError(f"{folder}: is a converted checkpoint already")
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: unknown layout; expected a Hugging Face CLIP folder (with config.json) or "
            "an OpenAI .pt file"
        )
    # The configuration says in a moment what reading the weights would take minutes to find out.
    spec = hugging_face_spec(folder, logit_scale=1.0)
    tensors = read_folder(folder)
    return tensors, dataclasses.replace(spec, logit_scale=_logit_scale(tensors, where=folder))


def _read_openai(file: Path, activation: str) -> tuple[Tensors, ClipSpec | None]:
    if file.suffix == ".safetensors":
        raise UserError(f"{file}: pass its folder, which holds config.json and the tokenizer too")
    tensors = read_torch_archive(file)
    if any(key.startswith(("visual.layer1.", "visual.attnpool.")) for key in tensors):
        raise UserError(f"{file}: a CLIP with a ResNet image tower; only ViTs can be converted")
    if "vision_model.embeddings.class_embedding" in tensors:
        raise UserError(f"{file}: weights of a Hugging Face CLIP; pass its folder")
    if not any(key.startswith("visual.") for key in tensors):
        raise UserError(
            f"{file}: unknown layout, no tensor of it is named visual.*; expected an OpenAI CLIP"
        )
    scale = _logit_scale(tensors, where=file)
    spec = openai_spec(tensors, activation=activation, logit_scale=scale, where=str(file))
    return tensors, spec


def _logit_scale(tensors: Tensors, *, where: Path) -> float:
    # An absent one is reported with everything else that is missing.
    value = tensors.get("logit_scale", np.zeros(()))
    # Far beyond the 100 at which CLIP is clipped, the scale is damaged, or overflows.
    if value.size != 1 or not abs(value.item()) < 20:
        told = value.item() if value.size == 1 else f"of shape {value.shape}"
        raise UserError(f"{where}: logit_scale is {told}, expected the logarithm of a factor")
    return math.exp(value.item())


def _count(tree: Params) -> int:
    return sum(_count(x) if isinstance(x, dict) else x.size for x in tree.values())


def _check_tokenizer(folder: Path, *, given: bool) -> None:
    if has_tokenizer(folder) or (folder / OPENAI_VOCABULARY).is_file():
        return
    wanted = f"tokenizer.json, vocab.json + merges.txt, or OpenAI's {OPENAI_VOCABULARY}"
    advice = "" if given else "; put it there or pass --tokenizer DIR"
    raise UserError(f"{folder}: no tokenizer there, expected {wanted}{advice}")


def _put_tokenizer(folder: Path, target: Path) -> None:
    if not has_tokenizer(folder):
        write_tokenizer(folder / OPENAI_VOCABULARY, target)
        return
    target.mkdir()
    for name in FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
