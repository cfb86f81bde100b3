"""What parameters say of some training images, whose labels nobody asks for."""

from collections.abc import Callable

import numpy as np

from must_jax.data.sources import Source
from must_jax.data.sources.subset import Subset
from must_jax.errors import LostInputError
from must_jax.predictor import Predictor
from must_jax.progress import say
from must_jax.quality import ProbePredictions
from must_jax.state import Params


class Probe:
    """Predicts the same images each time, spread evenly over a source.

    Attributes:
      records: of the images, indices in the source.
      images: they alone, as a source of its own.
    """

    def __init__(self, predictor: Predictor, source: Source, *, num_images: int):
        """Of a smaller source, all images."""
        count = min(num_images, len(source))
        self.records = [i * len(source) // count for i in range(count)]
        self.images = Subset(source, self.records)
        self._predictor = predictor

    def __call__(
        self, *, between_batches: Callable[[], None], **trees: Params
    ) -> dict[str, ProbePredictions]:
        """Of each tree, laid out by `state_shardings`.

        `between_batches` is called as often on every process, and may end it by raising.

        Raises:
          LostInputError: no image decodes.
        """
        found: dict[str, list[np.ndarray]] = {name: [] for name in trees}
        known = []
        for batch in self._predictor.batches(self.images, between_batches=between_batches, **trees):
            for name, ranked in batch.ranked.items():
                by_class = np.zeros_like(ranked.probabilities)
                # Of what is not known, all are written into the last class.
                np.put_along_axis(by_class, ranked.classes, ranked.probabilities, axis=1)
                found[name].append(by_class)
            known.append(next(iter(batch.ranked.values())).is_known)
        count = len(self.images)
        is_known = np.concatenate(known)[:count]
        if not is_known.any():
            raise LostInputError(
                f"none of {count} images spread over {self.images.path} decode; mend or remove "
                "those that don't"
            )
        if not is_known.all():
            say(
                f"{np.sum(~is_known)} of the {count} images that tell of quality without labels do "
                "not decode now, and are left out"
            )
        return {
            name: ProbePredictions.of(np.concatenate(parts)[:count], is_known=is_known)
            for name, parts in found.items()
        }
