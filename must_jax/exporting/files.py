"""Files that exports of several kinds share."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from must_jax.exporting.finished import FinishedRun
from must_jax.tokenizer import FILES

CLASSIFIER = "classifier.safetensors"
ABOUT = "classifier.json"


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an object."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file that transformers takes for PyTorch's.

    Raises:
      OSError: it can't be written.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        safetensors.numpy.save_file(dict(tensors), path, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from error
    path.chmod(mode)  # it would be its owner's alone


def copy_tokenizer(run: FinishedRun, folder: Path) -> None:
    """Puts the text tower's tokenizer into a folder."""
    for name in FILES:
        if (run.tokenizer / name).is_file():
            shutil.copyfile(run.tokenizer / name, folder / name)


def about(run: FinishedRun) -> dict[str, Any]:
    """What `classifier.json` says of every export."""
    return {
        "names": list(run.names),
        "tree": run.tree,
        "step": run.step,
        "logit_scale": run.spec.logit_scale,
        "image_size": run.spec.vision.image_size,
        "image_mean": list(run.spec.image_mean),
        "image_std": list(run.spec.image_std),
    }


def write_classifier(run: FinishedRun, folder: Path) -> None:
    """Writes the classifier and its names beside a checkpoint.

    The probabilities of an image are softmax(logit_scale * embedding @ classifier), the embedding
    (E,) being of unit length.
    """
    save_tensors(folder / CLASSIFIER, {"classifier": np.ascontiguousarray(run.classifier)})
    write_json(folder / ABOUT, about(run))
