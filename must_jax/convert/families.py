"""The families of checkpoints, and which of them a file or folder belongs to."""

from pathlib import Path

from must_jax.convert import hugging_face, open_clip, openai, siglip
from must_jax.convert.converted import SPEC_FILE
from must_jax.convert.fields import read_json
from must_jax.convert.layout import check_fit
from must_jax.convert.source import SourceCheckpoint
from must_jax.errors import UserError
from must_jax.models.layers import ACTIVATIONS

# Who reads a Hugging Face folder, by the `model_type` of its config.json.
HUGGING_FACE_FAMILIES = {"clip": hugging_face.open_folder, "siglip": siglip.open_folder}
# Why one that is known is refused.
REFUSED_FAMILIES = {"siglip2": siglip.NAFLEX}


def open_checkpoint(source: Path, *, activation: str | None) -> SourceCheckpoint:
    """Opens a checkpoint with the reader of its family, and checks that it fits its layout.

    Raises:
      UserError: it is of no family that is known, or doesn't fit.
    """
    if activation is not None and activation not in ACTIVATIONS:
        raise UserError(f"activation {activation!r} is unknown; use {' or '.join(ACTIVATIONS)}")
    if not source.is_dir():
        checkpoint = openai.open_file(source, activation=activation or "quick_gelu")
    elif activation is not None:
        raise UserError(f"{source}: its configuration gives the activation; leave it out")
    else:
        checkpoint = _open_folder(source)
    try:
        checkpoint.spec.check_numbers()
    except ValueError as error:
        raise UserError(f"{source}: {error}") from error
    check_fit(checkpoint.tensors, layout=checkpoint.layout, spec=checkpoint.spec, where=str(source))
    return checkpoint


def _open_folder(folder: Path) -> SourceCheckpoint:
    if (folder / SPEC_FILE).is_file():
        raise UserError(f"{folder}: is a converted checkpoint already")
    if open_clip.is_folder(folder):
        return open_clip.open_folder(folder)
    config = folder / hugging_face.CONFIG
    if not config.is_file():
        raise UserError(
            f"{folder}: unknown layout; expected a Hugging Face folder (with config.json), an "
            "OpenCLIP folder (with open_clip_config.json) or an OpenAI .pt file"
        )
    model_type = read_json(config).get("model_type")
    if model_type in list(REFUSED_FAMILIES):
        raise UserError(f"{config}: {REFUSED_FAMILIES[model_type]}")
    if model_type not in list(HUGGING_FACE_FAMILIES):
        raise UserError(
            f"{config}: model_type is {model_type!r}; only "
            f"{' and '.join(map(repr, HUGGING_FACE_FAMILIES))} can be converted"
        )
    return HUGGING_FACE_FAMILIES[model_type](folder)
