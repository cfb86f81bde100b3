"""What the model makes of the first images of a run."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from must_jax import sharding
from must_jax.data.sources import Source
from must_jax.experiment import Experiment
from must_jax.inspection import sheet
from must_jax.inspection.sheet import Card, Guess
from must_jax.inspection.statistics import Predictions
from must_jax.models import VisionTransformer, encode
from must_jax.pages.pictures import data_address
from must_jax.state import Params
from must_jax.train_step import Batch, Method, masked_patches

BATCH_SIZE = 8  # small, so that the clock is looked at often
SHEET_IMAGES = 12

_VIEWS = ("image_weak", "image_strong", "patch_mask")

HostBatch = dict[str, np.ndarray]


def first_batches(
    experiment: Experiment, source: Source, *, mesh: Mesh, seconds: float, max_images: int
) -> Iterator[HostBatch]:
    """The run's first images in small batches, until the time is up.

    Views, masks and their order depend on neither the batch size nor the number of epochs, so
    these are the images that the run begins with.
    """
    devices = sharding.num_row_shards(mesh)
    config = experiment.config.copy_and_resolve_references()
    config.batch_size = min(config.batch_size, -(-BATCH_SIZE // devices) * devices)
    config.epochs = 1
    small = dataclasses.replace(experiment, config=config)
    started = time.perf_counter()
    num_images = 0
    with small.train_batches(source, mesh=mesh, start_step=0) as batches:
        for batch in batches:
            yield batch
            num_images += config.batch_size
            if num_images >= max_images or time.perf_counter() - started > seconds:
                break


def guess(
    params: Params, images: jax.Array, *, model: VisionTransformer, method: Method
) -> tuple[jax.Array, jax.Array]:
    """Class and probability (B,) that training takes weak views (B, R, R, 3) in uint8 for."""
    probabilities = jax.nn.softmax(encode(model, params, method.normalize(images)).logits)
    return jnp.argmax(probabilities, axis=-1), jnp.max(probabilities, axis=-1)


def fill_in(params: Params, batch: Batch, *, model: VisionTransformer, method: Method) -> jax.Array:
    """The reconstruction (B, M, 3 * p * p) of the masked patches of strong views."""
    images = method.normalize(batch["image_strong"])
    masked = masked_patches(batch["patch_mask"], num_masked=method.num_masked)
    return encode(model, params, images, masked).reconstruction


class Predictor:
    """Runs an experiment's model on batches spread over all devices."""

    def __init__(self, experiment: Experiment, mesh: Mesh):
        """Nothing is compiled before the first call."""
        self._mesh = mesh
        self._spec = experiment.spec
        model, method = experiment.model, experiment.method(steps_per_epoch=1)

        def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
            bound = functools.partial(function, model=model, method=method)
            return jax.jit(bound, out_shardings=sharding.replicated(mesh))

        self._guess, self._fill_in = compiled(guess), compiled(fill_in)

    def predictions(
        self, params: Params, batches: Iterator[HostBatch], *, num_classes: int
    ) -> tuple[Predictions, HostBatch]:
        """Predictions of all images, and the images that the sheet shows."""
        found: list[HostBatch] = []
        kept: list[HostBatch] = []
        for batch in batches:
            views = sharding.to_mesh({"image_weak": batch["image_weak"]}, self._mesh)
            predicted, confidence = jax.device_get(self._guess(params, views["image_weak"]))
            one = {"predicted": predicted, "confidence": confidence}
            found.append(one | ({"label": batch["label"]} if "label" in batch else {}))
            if sum(len(each["record"]) for each in kept) < SHEET_IMAGES:
                kept.append({**batch, **one})
        joined = _join(found)
        predictions = Predictions(
            confidence=joined["confidence"],
            predicted=joined["predicted"],
            labels=joined.get("label"),
            num_classes=num_classes,
        )
        return predictions, {name: values[:SHEET_IMAGES] for name, values in _join(kept).items()}

    def cards(
        self, images: HostBatch, source: Source, *, student: Params, teacher: Params | None
    ) -> tuple[Card, ...]:
        """The contact sheet. All processes must call it, with the same images.

        Args:
          images: a batch, such as `predictions` gave out with its zero-shot predictions.
          source: to name them.
          student: whose reconstructions are shown.
          teacher: whose predictions are shown, or None.
        """
        views = sharding.replicate({name: images[name] for name in _VIEWS}, self._mesh)
        filled = jax.device_get(self._fill_in(student, views))
        guesses = None
        if teacher is not None:
            guesses = jax.device_get(self._guess(teacher, views["image_weak"]))
        patch_size = self._spec.vision.patch_size
        cards = []
        for place, record in enumerate(images["record"]):
            strong, mask = images["image_strong"][place], images["patch_mask"][place]
            rebuilt = sheet.reconstructed_picture(
                strong,
                mask,
                filled[place],
                patch_size=patch_size,
                mean=self._spec.image_mean,
                std=self._spec.image_std,
            )
            masked = sheet.masked_picture(strong, mask, patch_size=patch_size)
            label = int(images["label"][place]) if "label" in images else -1
            cards.append(
                Card(
                    name=source.name_of(int(record)),
                    label=None if label < 0 else label,
                    zero_shot=_guess_at(place, images["predicted"], images["confidence"])
                    if "predicted" in images
                    else None,
                    teacher=None if guesses is None else _guess_at(place, *guesses),
                    weak=data_address(images["image_weak"][place]),
                    strong=data_address(strong),
                    masked=data_address(masked),
                    reconstructed=data_address(rebuilt),
                )
            )
        return tuple(cards)


def _join(batches: list[HostBatch]) -> HostBatch:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _guess_at(place: int, predicted: np.ndarray, confidence: np.ndarray) -> Guess:
    return Guess(predicted=int(predicted[place]), confidence=float(confidence[place]))
