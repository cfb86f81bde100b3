"""A run as an OpenCLIP folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from must_jax.convert import open_clip
from must_jax.convert.source import source_tensors
from must_jax.convert.weights import OPEN_CLIP_NAMES
from must_jax.errors import UserError
from must_jax.exporting.files import copy_tokenizer, save_tensors, write_json
from must_jax.exporting.finished import FinishedRun
from must_jax.models import ClipSpec
from must_jax.models.spec import TowerSpec

DEFAULT_EPS = 1e-5


def refuse(spec: ClipSpec, *, layout: str, problems: Sequence[str]) -> None:
    """Refuses a model that a layout of OpenAI's names would silently turn into another.

    Args:
      spec: of the model.
      layout: what messages call it.
      problems: of this layout with a CLIP, in words.

    Raises:
      UserError: the model is a SigLIP, or has problems.
    """
    if not spec.vision.has_class_token:
        raise UserError(f"{layout}'s layout has no place for a SigLIP; use --format=hugging_face")
    problems = list(problems)
    end = spec.text.eot_token_id
    if end not in (None, spec.text.vocab_size - 1):
        # There, a text is pooled at its largest token.
        problems.append(f"texts end with token {end}, expected {spec.text.vocab_size - 1}")
    if problems:
        raise UserError(
            f"{layout}'s layout has no place for this model: {'; '.join(problems)}; use "
            "--format=hugging_face"
        )


def _tower(spec: TowerSpec) -> dict[str, Any]:
    ratio = spec.mlp_dim / spec.width
    # OpenCLIP rounds down, and the quotient may lie below the number that it stands for.
    if int(spec.width * ratio) != spec.mlp_dim:
        ratio = (spec.mlp_dim + 0.5) / spec.width
    eps = spec.layer_norm_eps
    return {
        "width": spec.width,
        "layers": spec.depth,
        "mlp_ratio": ratio,
        **({} if eps == DEFAULT_EPS else {"norm_kwargs": {"eps": eps}}),
    }


def config(spec: ClipSpec) -> dict[str, Any]:
    """`open_clip_config.json`.

    Raises:
      UserError: the layout can't hold the model.
    """
    activations = {spec.vision.activation, spec.text.activation}
    is_known = activations in ({"gelu"}, {"quick_gelu"})
    odd = [] if is_known else [f"its activations are {' and '.join(sorted(activations))}"]
    refuse(spec, layout="OpenCLIP", problems=odd)
    return {
        "model_cfg": {
            "embed_dim": spec.embed_dim,
            "quick_gelu": activations == {"quick_gelu"},
            "vision_cfg": {
                "image_size": spec.vision.image_size,
                "patch_size": spec.vision.patch_size,
                "head_width": spec.vision.width // spec.vision.num_heads,
                **_tower(spec.vision),
            },
            "text_cfg": {
                "context_length": spec.text.context_length,
                "vocab_size": spec.text.vocab_size,
                "heads": spec.text.num_heads,
                **_tower(spec.text),
            },
        },
        "preprocess_cfg": {
            "mean": list(spec.image_mean),
            "std": list(spec.image_std),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def write(run: FinishedRun, folder: Path) -> None:
    """Writes a folder that OpenCLIP loads as `local-dir:FOLDER`.

    Raises:
      UserError: the layout can't hold the model.
    """
    write_json(folder / open_clip.CONFIG, config(run.spec))
    tensors = source_tensors(run.params, layout=open_clip.LAYOUT, spec=run.spec)
    save_tensors(folder / OPEN_CLIP_NAMES[0], tensors)
    copy_tokenizer(run, folder)
