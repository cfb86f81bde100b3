"""Class probabilities of a source's images, on the mesh, for any of a run's parameters."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from must_jax import distributed, sharding
from must_jax.compile import jit_predict_step
from must_jax.data.sources import Source
from must_jax.experiment import Experiment
from must_jax.state import Params


class Ranked(NamedTuple):
    """What one tree of parameters says of B images.

    Attributes:
      classes: (B, K) int32, the most probable first; -1 where there is no image.
      probabilities: (B, K), of these classes.
    """

    classes: np.ndarray
    probabilities: np.ndarray

    @property
    def is_known(self) -> np.ndarray:
        """(B,), False for padding and for what does not decode."""
        return self.classes[:, 0] >= 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictedBatch:
    """The next images of a source, B of them; padding follows its last one.

    Attributes:
      ranked: of each tree.
    """

    ranked: dict[str, Ranked]
    _labels: jax.Array

    def labels(self) -> np.ndarray:
        """(B,) int32, -1 where the source has none. All processes must call it."""
        return distributed.whole(self._labels)


class Predictor:
    """Predicts sources, one compiled program for all of them."""

    def __init__(self, experiment: Experiment, mesh: Mesh):
        """The first batch compiles."""
        self._experiment = experiment
        self._mesh = mesh
        self._predict = jit_predict_step(
            mesh,
            experiment.student_shapes(),
            model=experiment.model,
            image_mean=experiment.spec.image_mean,
            image_std=experiment.spec.image_std,
            top_k=len(experiment.classes.names),
        )

    def batches(
        self, source: Source, *, between_batches: Callable[[], None], **trees: Params
    ) -> Iterator[PredictedBatch]:
        """The images of `source` in its order, the same on every process.

        Args:
          source: the images.
          between_batches: called as often on every process, and may end it by raising.
          trees: parameters, laid out by `state_shardings`.
        """
        with self._experiment.eval_batches(source, mesh=self._mesh) as batches:
            for batch in batches:
                between_batches()
                arrays = {name: batch[name] for name in ("image", "valid", "label")}
                on_mesh = sharding.to_mesh(arrays, self._mesh)
                labels = on_mesh.pop("label")
                ranked = {
                    name: Ranked(*map(distributed.whole, self._predict(params, on_mesh)))
                    for name, params in trees.items()
                }
                yield PredictedBatch(ranked=ranked, _labels=labels)
