"""What parameters say of some training images, whose labels nobody asks for."""

from collections.abc import Callable

import numpy as np
from jax.sharding import Mesh

from must_jax import distributed, sharding
from must_jax.compile import jit_predict_step
from must_jax.data.sources import Source
from must_jax.data.sources.subset import Subset
from must_jax.errors import UserError
from must_jax.experiment import Experiment
from must_jax.quality import ProbePredictions
from must_jax.state import Params


class Probe:
    """Predicts the same images each time, spread evenly over a source."""

    def __init__(self, experiment: Experiment, mesh: Mesh, source: Source, *, num_images: int):
        """Of a smaller source, all images; the first call compiles."""
        count = min(num_images, len(source))
        self._images = Subset(source, [i * len(source) // count for i in range(count)])
        self._experiment = experiment
        self._mesh = mesh
        self._num_classes = len(experiment.classes.names)
        self._predict = jit_predict_step(
            mesh,
            experiment.student_shapes(),
            model=experiment.model,
            image_mean=experiment.spec.image_mean,
            image_std=experiment.spec.image_std,
            top_k=self._num_classes,
        )

    def __call__(
        self, *, between_batches: Callable[[], None], **trees: Params
    ) -> dict[str, ProbePredictions]:
        """Of each tree, laid out by `state_shardings`; images that don't decode are left out.

        `between_batches` is called as often on every process, and may end it by raising.

        Raises:
          UserError: no image decodes.
        """
        found: dict[str, list[np.ndarray]] = {name: [] for name in trees}
        with self._experiment.eval_batches(self._images, mesh=self._mesh) as batches:
            for batch in batches:
                between_batches()
                arrays = {name: batch[name] for name in ("image", "valid")}
                on_mesh = sharding.to_mesh(arrays, self._mesh)
                for name, params in trees.items():
                    predicted = self._predict(params, on_mesh)
                    classes, probabilities = (distributed.whole(array) for array in predicted)
                    is_known = classes[:, 0] >= 0
                    by_class = np.zeros_like(probabilities[is_known])
                    np.put_along_axis(by_class, classes[is_known], probabilities[is_known], axis=1)
                    found[name].append(by_class)
        rows = {name: np.concatenate(parts) for name, parts in found.items()}
        if not all(map(len, rows.values())):
            raise UserError(
                f"none of {len(self._images)} images spread over {self._images.path} decode; mend "
                "or remove those that don't"
            )
        return {name: ProbePredictions.of(probabilities) for name, probabilities in rows.items()}
