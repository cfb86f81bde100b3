"""Top-1 accuracy on labelled images, exact on any number of devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from must_jax import sharding
from must_jax.data.sources import ImageFolder
from must_jax.errors import UserError
from must_jax.experiment import Experiment
from must_jax.models import VisionTransformer, encode
from must_jax.state import Params
from must_jax.train_step import Batch, Method, normalize

Counts = dict[str, jax.Array]


def eval_step(
    trees: dict[str, Params], batch: Batch, *, model: VisionTransformer, method: Method
) -> Counts:
    """Number of images that each of the named parameter trees gets right, and of images in all.

    Args:
      trees: parameters by name, such as student and teacher.
      batch: `image` (B, R, R, 3) uint8, `label` (B,) int32, `valid` (B,) bool.

    Returns:
      Scalars by the names of `trees`, and `images`.
    """
    images = normalize(batch["image"], method=method)

    def num_right(params: Params) -> jax.Array:
        predicted = jnp.argmax(encode(model, params, images).logits, axis=-1)
        return jnp.sum((predicted == batch["label"]) & batch["valid"])

    counts = {name: num_right(params) for name, params in trees.items()}
    return counts | {"images": jnp.sum(batch["valid"])}


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
        self._undecodable: set[int] = set()
        self._step = jax.jit(
            functools.partial(
                eval_step, model=experiment.model, method=experiment.method(steps_per_epoch=1)
            )
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
                self._note_undecodable(batch["failed"], self.source)
                arrays = {name: batch[name] for name in ("image", "label", "valid")}
                counts.append(self._step(trees, sharding.to_mesh(arrays, self._mesh)))
        counts = jax.device_get(counts)
        num_images = sum(int(count["images"]) for count in counts)
        if not num_images:
            raise UserError(f"no image in {self.source.path} decodes; check config.dataset.test")
        return {name: sum(int(count[name]) for count in counts) / num_images for name in trees}

    def _note_undecodable(self, failed: np.ndarray, source: ImageFolder) -> None:
        for record in sorted(set(failed[failed >= 0].tolist()) - self._undecodable):
            self._undecodable.add(record)
            print(f"not scored: {source.path_of(record)} does not decode", flush=True)
