"""Accuracy on labelled images, exact on any number of devices and processes."""

from collections.abc import Callable

import jax
from jax.sharding import Mesh

from must_jax import distributed, sharding
from must_jax.compile import jit_eval_step
from must_jax.errors import LostInputError
from must_jax.experiment import Experiment
from must_jax.failed_images import FailedImages
from must_jax.progress import say
from must_jax.scores import Scores, score_of
from must_jax.source_digest import test_images_digest
from must_jax.state import Params


class Evaluator:
    """Scores parameter trees on the test images of an experiment.

    Attributes:
      source: the images; None where the config names none.
      digest: SHA-256 of their names, in their order, and of their labels; None without images.
    """

    def __init__(self, experiment: Experiment, mesh: Mesh):
        """Lists the test images; the first call compiles. All processes must call it.

        Raises:
          UserError: the test images are missing or not sorted into classes, or others on another
            process.
        """
        self._experiment = experiment
        self._mesh = mesh
        self.source = experiment.test_source()
        self.digest = test_images_digest(self.source)
        if self.source is not None:
            self._failed = FailedImages(self.source, records=[])
        distributed.require_same({"the SHA-256 of the test images' names and labels": self.digest})
        self._count_right = jit_eval_step(
            mesh,
            experiment.student_shapes(),
            model=experiment.model,
            image_mean=experiment.spec.image_mean,
            image_std=experiment.spec.image_std,
        )

    def __call__(
        self, *, between_batches: Callable[[], None] = lambda: None, **trees: Params
    ) -> Scores:
        """The score of each tree, laid out by `state_shardings`, by name; None without test images.

        `between_batches` is called as often on every process, and may end it by raising.

        Raises:
          LostInputError: no test image decodes.
        """
        if self.source is None:
            return dict.fromkeys(trees)
        counts = []
        with self._experiment.eval_batches(self.source, mesh=self._mesh) as batches:
            for batch in batches:
                between_batches()
                self._failed.note(batch)
                arrays = {name: batch[name] for name in ("image", "label", "valid")}
                on_mesh = sharding.to_mesh(arrays, self._mesh)
                counts.append({n: self._count_right(p, on_mesh) for n, p in trees.items()})
        self._failed.share()
        totals = {name: sum(c[name] for c in jax.device_get(counts)) for name in trees}
        counted = min(int(total.sum()) for _, total in totals.values())
        if not counted:
            raise LostInputError(f"no image in {self.source.path} decodes")
        if counted < len(self.source):
            say(
                f"{len(self.source) - counted} of the {len(self.source)} images in "
                f"{self.source.path} do not decode now, and are left out of these accuracies"
            )
        return {name: score_of(right, total) for name, (right, total) in totals.items()}
