"""The parameters of a finished run, ready to leave it."""

import dataclasses
import os
from pathlib import Path

import jax
import numpy as np

from must_jax import sharding
from must_jax.convert import TOKENIZER
from must_jax.convert.source import Params
from must_jax.experiment import Experiment
from must_jax.models import ClipSpec, VisionTransformer
from must_jax.resume import read_state

TREES = ("teacher", "student")
# What training adds to a checkpoint's image tower.
HEADS = ("mask_token", "ln_patch", "decoder", "classifier")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """One of a run's two models, on the host.

    Attributes:
      spec: the architecture, at the image size that was trained.
      params: {"vision": ..., "text": ...}, the adapted image tower and the text tower, float32.
      classifier: (E, K), float32.
      names: of the K classes.
      model: the image tower with its classifier, as it was trained.
      tokenizer: the folder of the text tower's tokenizer.
      tree: `teacher` or `student`.
      step: of the checkpoint.
    """

    spec: ClipSpec
    params: Params
    classifier: np.ndarray
    names: tuple[str, ...]
    model: VisionTransformer
    tokenizer: Path
    tree: str
    step: int


def load_finished(experiment: Experiment, workdir: str, *, tree: str) -> FinishedRun:
    """Reads the latest checkpoint of `workdir` onto one device, wherever it was trained.

    Args:
      experiment: of the run.
      workdir: of the run.
      tree: of `TREES`.

    Raises:
      UserError: there is none, or it is another config's.
    """
    mesh = sharding.make_mesh(devices=jax.local_devices()[:1])
    state = read_state(experiment, workdir, mesh=mesh).state
    params = jax.device_get(state.teacher_params if tree == "teacher" else state.params)
    return FinishedRun(
        spec=experiment.spec,
        params={
            "vision": {name: leaf for name, leaf in params.items() if name not in HEADS},
            "text": experiment.clip_params["text"],
        },
        classifier=params["classifier"],
        names=tuple(experiment.classes.names),
        model=experiment.model,
        tokenizer=Path(os.path.expanduser(experiment.config.checkpoint)) / TOKENIZER,
        tree=tree,
        step=int(state.step),
    )
