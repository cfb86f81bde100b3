"""A finished run to files, whole or not at all."""

import os
import pathlib

import ml_collections

from must_jax.convert.converted import check_target, written_whole
from must_jax.errors import UserError
from must_jax.experiment import build
from must_jax.exporting import hugging_face, open_clip, openai, serving
from must_jax.exporting.files import ABOUT, write_classifier
from must_jax.exporting.finished import FinishedRun, load_finished
from must_jax.progress import say

# Who writes a checkpoint, by format.
CHECKPOINTS = {
    "hugging_face": hugging_face.write,
    "open_clip": open_clip.write,
    "openai": openai.write,
}
FORMATS = (*CHECKPOINTS, "serving")


def export_run(
    config: ml_collections.ConfigDict,
    workdir: str,
    target: str | os.PathLike,
    *,
    format: str,
    tree: str = "teacher",
    weights: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
) -> FinishedRun:
    """Writes a run's model to the folder `target`.

    Args:
      config: of the run.
      workdir: of the run.
      target: the folder, which appears whole or not at all.
      format: of `FORMATS`.
      tree: `teacher` or `student`.
      weights: of a serving artifact, of `weights.KINDS`; None: float32.
      dtype: that a serving artifact computes in; None: what the run did.
      overwrite: replaces an export at `target`.

    Returns:
      What was written.

    Raises:
      UserError: the run has no checkpoint, the format can't hold its model, or the target
        exists or can't be written.
    """
    path = pathlib.Path(target).absolute()
    check_target(path, overwrite=overwrite, marker=ABOUT, kind="export")
    if format != "serving" and (weights or dtype):
        raise UserError(
            f"--weights and --dtype are of --format=serving; {format} keeps float32, as trained"
        )
    run = load_finished(build(config), workdir, tree=tree)
    with written_whole(path) as folder:
        if format == "serving":
            serving.write(run, folder, weights=weights or "float32", dtype=dtype or config.dtype)
        else:
            CHECKPOINTS[format](run, folder)
            write_classifier(run, folder)
        size = sum(file.stat().st_size for file in folder.iterdir())
    say(
        f"{format}: {tree} of step {run.step}, {len(run.names)} classes, image size "
        f"{run.spec.vision.image_size}, {size / 2**20:.1f} MiB -> {target}"
    )
    return run
