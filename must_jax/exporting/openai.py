"""A run as a state dict that OpenAI's `clip.load` reads."""

from pathlib import Path
from typing import Any

import numpy as np

from must_jax.convert import openai
from must_jax.convert.fields import OPENAI_MEAN, OPENAI_STD
from must_jax.convert.source import source_tensors
from must_jax.exporting.files import copy_tokenizer
from must_jax.exporting.finished import FinishedRun
from must_jax.exporting.open_clip import DEFAULT_EPS, refuse
from must_jax.exporting.torch_archive import write_torch_archive
from must_jax.models import ClipSpec

FILE = "clip.pt"


def check(spec: ClipSpec) -> None:
    """Refuses a model that such a file would silently turn into another: it tells shapes alone.

    Raises:
      UserError: all that differs from OpenAI's models.
    """
    found = []
    for name, tower in (("image", spec.vision), ("text", spec.text)):
        told: dict[str, tuple[Any, Any]] = {
            "activation": (tower.activation, "quick_gelu"),
            "LayerNorm epsilon": (tower.layer_norm_eps, DEFAULT_EPS),
            "heads": (tower.num_heads, tower.width // openai.HEAD_WIDTH),
            "MLP width": (tower.mlp_dim, 4 * tower.width),
        }
        found += [
            f"{field} of the {name} tower {value}, expected {expected}"
            for field, (value, expected) in told.items()
            if value != expected
        ]
    for name, ours, theirs in (
        ("mean", spec.image_mean, OPENAI_MEAN),
        ("deviation", spec.image_std, OPENAI_STD),
    ):
        if ours != theirs:
            found.append(f"image {name} {list(ours)}, expected {list(theirs)}")
    refuse(spec, layout="OpenAI", problems=found)


def write(run: FinishedRun, folder: Path) -> None:
    """Writes `clip.pt`, in the names of the released files.

    Raises:
      UserError: the layout can't hold the model.
    """
    check(run.spec)
    tensors = source_tensors(run.params, layout=openai.LAYOUT, spec=run.spec)
    sizes = {
        "input_resolution": run.spec.vision.image_size,
        "context_length": run.spec.text.context_length,
        "vocab_size": run.spec.text.vocab_size,
    }
    buffers = {name: np.asarray(size, np.int64) for name, size in sizes.items()}
    write_torch_archive(folder / FILE, tensors | buffers)
    copy_tokenizer(run, folder)
