"""Images of a source as thumbnails, and how the student fills in what is masked."""

from __future__ import annotations

from collections.abc import Iterable

import jax
import numpy as np
from jax.sharding import Mesh

from must_jax import distributed, sharding
from must_jax.data.decode import UndecodableImageError
from must_jax.data.examples import EvalTransform
from must_jax.data.sources import Source, decode_record
from must_jax.errors import UserError
from must_jax.experiment import Experiment
from must_jax.inspection.predict import Predictor as SheetPredictor
from must_jax.inspection.predict import first_batches
from must_jax.inspection.sheet import Card
from must_jax.pages.pictures import data_address
from must_jax.reporting.predictions import Predictions
from must_jax.reporting.report import FailedImages, NoReportError, Thumbnail
from must_jax.state import Params

THUMBNAIL = 112  # pixels a side
CARDS = 6
_NAMED = 50


def thumbnails(
    source: Source, predictions: Predictions, places: Iterable[int], *, image_size: int
) -> tuple[Thumbnail, ...]:
    """The images at some places of the predictions, in that order."""
    view = EvalTransform(source=source, image_size=image_size)
    shown = []
    for place in map(int, places):
        record = int(predictions.records[place])
        example = view(record)
        pixels = np.asarray(example["image"])
        classes, probabilities = predictions.teacher
        zeroshot = predictions.zeroshot
        label = -1 if predictions.labels is None else int(predictions.labels[place])
        shown.append(
            Thumbnail(
                name=source.name_of(record).removeprefix(f"{source.path}/"),
                picture=data_address(pixels, largest=THUMBNAIL) if example["valid"] else "",
                teacher=tuple(
                    zip(classes[place].tolist(), probabilities[place].tolist(), strict=True)
                ),
                zeroshot=(int(zeroshot.classes[place, 0]), float(zeroshot.probabilities[place, 0])),
                label=None if label < 0 else label,
            )
        )
    return tuple(shown)


def reconstructions(
    experiment: Experiment, source: Source, mesh: Mesh, *, student: Params
) -> tuple[Card, ...]:
    """Views of the run's first images, with what the student fills in.

    All processes must call it: each reads these few images itself, and computes all of them.

    Raises:
      NoReportError: one of them can't read them.
    """
    alone = sharding.make_mesh(devices=jax.local_devices()[:1])
    few, failure = {}, None
    try:
        batch = next(first_batches(experiment, source, mesh=alone, seconds=0, max_images=CARDS))
        few = {name: values[:CARDS] for name, values in batch.items()}
    except UserError as error:
        failure = str(error)
    for told in filter(None, distributed.gather(failure)):
        raise NoReportError(told)
    return SheetPredictor(experiment, mesh).cards(few, source, student=student, teacher=None)


def failed_images(source: Source, records: list[int]) -> FailedImages:
    """What is told of images that did not decode."""
    named = []
    for record in records[:_NAMED]:
        reason = "did not decode during training, and does now"
        try:
            decode_record(source, record)
        except UndecodableImageError as error:
            reason = error.reason
        named.append((source.name_of(record), reason))
    return FailedImages(count=len(records), fraction=len(records) / len(source), named=named)
