"""Accuracy on labelled images, exact on any number of devices."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from must_jax import sharding
from must_jax.errors import UserError
from must_jax.experiment import Experiment
from must_jax.models import VisionTransformer, encode
from must_jax.progress import FailedImages
from must_jax.scores import Scores, score_of
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
    """Of each class, how many valid images have the largest logit at it, and how many there are.

    Args:
      params: the student's or the teacher's.
      batch: `image` (B, R, R, 3) uint8, `label` (B,) int32, `valid` (B,) bool.

    Returns:
      (2, K) int32, over the global batch.
    """
    images = normalize(batch["image"], mean=image_mean, std=image_std)
    logits = encode(model, params, images).logits
    right = jnp.argmax(logits, axis=-1) == batch["label"]
    is_label = batch["label"][:, None] == jnp.arange(logits.shape[-1])[None]
    of_class = is_label & batch["valid"][:, None]
    return jnp.stack([jnp.sum(of_class & right[:, None], axis=0), jnp.sum(of_class, axis=0)])


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

    def __call__(self, **trees: Params) -> Scores:
        """The score of each tree, by name; None without test images.

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
        if not all(total.any() for _, total in totals.values()):
            raise UserError(f"no image in {self.source.path} decodes")
        return {name: score_of(right, total) for name, (right, total) in totals.items()}
