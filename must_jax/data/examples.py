"""Records of a source to training and evaluation examples."""

from __future__ import annotations

import dataclasses

import numpy as np

from must_jax.data.decode import UndecodableImageError, decode_pixels
from must_jax.data.masking import draw_patch_mask
from must_jax.data.randaugment import RandAugment
from must_jax.data.resize import Raster
from must_jax.data.sources import Source, decode_record
from must_jax.data.views import evaluation_view, smallest_side, strong_view, weak_view
from must_jax.errors import LostInputError

Example = dict[str, np.ndarray | np.generic]

_MAX_TRIES = 16
_REASON = "U160"  # of one size, for examples are stacked to batches; longer ones are cut


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """Turns a record into its two views and its patch mask.

    Attributes:
        source: Where the records come from, and replacements for those that do not decode.
        image_size: Side R of the views, pixels.
        patch_size: Side of a patch of the image tower, pixels.
        mask_patch_size: Side of a block that is masked as one, pixels.
        mask_ratio: Share of the blocks to mask.
        crop_area: Smallest and largest share of the image's area in the strong view.
        flip_probability: Chance that the strong view is flipped.
        rand_augment: Distribution of the strong view's further operations.
        fill_color: RGB, 0 to 255, for what geometric operations uncover.
    """

    source: Source
    image_size: int
    patch_size: int
    mask_patch_size: int
    mask_ratio: float
    crop_area: tuple[float, float]
    flip_probability: float
    rand_augment: RandAugment
    fill_color: tuple[int, int, int]

    def __call__(self, record: int, rng: np.random.Generator) -> Example:
        """Reads one record.

        Args:
            record: Index in the source.
            rng: Generator of this record in this epoch.

        Returns:
            One example, as `train_loader` batches them.

        Raises:
            LostInputError: Neither the record nor any of the replacements drawn for it decodes.
        """
        failed, why = -1, ""
        drawn = record
        side = smallest_side(image_size=self.image_size, crop_area=self.crop_area)
        for _ in range(_MAX_TRIES):
            try:
                data, name = self.source.read(drawn), self.source.name_of(drawn)
                image = Raster(decode_pixels(data, name=name, smallest_side=side))
                break
            except UndecodableImageError as error:
                failed, why, last = record, why or error.reason, error
            # Not the next in line: damaged files come in runs, as when a copy was cut short.
            drawn = int(rng.integers(len(self.source)))
        else:
            raise LostInputError(
                f"{_MAX_TRIES} images drawn from {self.source.path} in a row do not decode, "
                f"the last one {last}"
            )
        # The strong view comes last, since the number of its draws varies: so neither the weak
        # view nor the mask of a record depends on how the strong view is made.
        example: Example = {
            "image_weak": weak_view(image, image_size=self.image_size, rng=rng),
            "patch_mask": draw_patch_mask(
                rng,
                image_size=self.image_size,
                patch_size=self.patch_size,
                mask_patch_size=self.mask_patch_size,
                mask_ratio=self.mask_ratio,
            ),
            "image_strong": strong_view(
                image,
                image_size=self.image_size,
                crop_area=self.crop_area,
                flip_probability=self.flip_probability,
                rand_augment=self.rand_augment,
                fill_color=self.fill_color,
                rng=rng,
            ),
            "record": np.int32(drawn),
            "failed": np.int32(failed),
            "reason": np.array(why, _REASON),
        }
        if self.source.labels is not None:
            example["label"] = np.int32(self.source.labels[drawn])
        return example


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """Turns a position into the evaluation view of the record there, or into padding.

    Attributes:
        source: Where the records come from.
        image_size: Side R of the view, pixels.
    """

    source: Source
    image_size: int

    def __call__(self, position: int) -> Example:
        """Reads the record at `position`; past the end of the source there is padding."""
        image = np.zeros((self.image_size, self.image_size, 3), np.uint8)
        record = failed = label = -1
        why = ""
        if position < len(self.source):
            record = position
            try:
                decoded = decode_record(self.source, record)
                image = evaluation_view(decoded, image_size=self.image_size)
            except UndecodableImageError as error:
                failed, why = position, error.reason
            # After the image: some sources find the label where the image lies.
            if self.source.labels is not None:
                label = self.source.labels[record]
        return {
            "image": image,
            "label": np.int32(label),
            "record": np.int32(record),
            "failed": np.int32(failed),
            "reason": np.array(why, _REASON),
            "valid": np.bool_(record >= 0 and failed < 0),
        }
