"""Top-1 accuracy on labelled images, exact on any number of devices."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from must_jax import sharding
from must_jax.errors import UserError
from must_jax.experiment import Experiment
from must_jax.models import VisionTransformer, encode
from must_jax.progress import FailedImages
from must_jax.state import Params
from must_jax.train_step import Batch, normalize


def count_right(
    params: Params,
    batch: Batch,
    *,
    model: VisionTransformer,
    image_mean: tuple[float, float, float],
    image_std: tuple[float, float, float],
) -> jax.Array:
    """How many valid images have the largest logit at their label, and how many are valid.

    Args:
      params: the student's or the teacher's.
      batch: `image` (B, R, R, 3) uint8, `label` (B,) int32, `valid` (B,) bool.

    Returns:
      (2,) int32, over the global batch.
    """
    images = normalize(batch["image"], mean=image_mean, std=image_std)
    predicted = jnp.argmax(encode(model, params, images).logits, axis=-1)
    right = (predicted == batch["label"]) & batch["valid"]
    return jnp.stack([jnp.sum(right), jnp.sum(batch["valid"])])


class Evaluator:
    """Scores parameter trees on the test images of an experiment."""

    def __init__(self, experiment: Experiment, mesh: Mesh):
        """Lists the test images; the first call compiles.

        Raises:
          UserError: the test images are missing or not sorted into classes.
        """
        self._experiment = experiment
        self._mesh = mesh
        self.source = experiment.test_source()
        if self.source is not None:
            self._failed = FailedImages(self.source, records=[])
        self._count_right = jax.jit(
            functools.partial(
                count_right,
                model=experiment.model,
                image_mean=experiment.spec.image_mean,
                image_std=experiment.spec.image_std,
            ),
            out_shardings=sharding.replicated(mesh),
        )

    def __call__(self, **trees: Params) -> dict[str, float | None]:
        """Top-1 of each tree, a fraction, by name; None without test images.

        Raises:
          UserError: no test image decodes.
        """
        if self.source is None:
            return dict.fromkeys(trees)
        counts = []
        with self._experiment.eval_batches(self.source) as batches:
            for batch in batches:
                self._failed.note(batch["failed"])
                arrays = {name: batch[name] for name in ("image", "label", "valid")}
                on_mesh = sharding.to_mesh(arrays, self._mesh)
                counts.append({n: self._count_right(p, on_mesh) for n, p in trees.items()})
        totals = {name: sum(c[name] for c in jax.device_get(counts)) for name in trees}
        for _, num_valid in totals.values():
            if not num_valid:
                raise UserError(f"no image in {self.source.path} decodes")
        return {name: float(right / valid) for name, (right, valid) in totals.items()}
