"""Batches of training views and of evaluation views, on Grain."""

from __future__ import annotations

import math

import grain
import numpy as np

from must_jax.data.examples import EvalTransform, TrainTransform
from must_jax.data.loader import Loader, ProcessRows
from must_jax.data.masking import draw_patch_mask
from must_jax.data.randaugment import RandAugment
from must_jax.data.sources import Source
from must_jax.errors import UserError


def train_loader(
    source: Source,
    *,
    batch_size: int,
    image_size: int,
    patch_size: int,
    mask_patch_size: int,
    mask_ratio: float,
    crop_area: tuple[float, float],
    flip_probability: float,
    rand_augment: RandAugment,
    fill_color: tuple[int, int, int],
    seed: int,
    num_epochs: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 16,
    num_workers: int = 0,
    prefetch: int = 4,
) -> Loader:
    """Training batches of this process.

    Every epoch has an order of its own and steps_per_epoch = floor(records / batch_size) batches;
    the records left over differ from epoch to epoch. Views and mask are a function of (seed,
    record, epoch) alone, and so is what replaces a record that does not decode: batch size,
    threads, workers and processes don't change them. The batches of processes 0, 1, ..., one after
    the other, are the batch that a single process would get.

    Args:
        source: The images.
        batch_size: Global batch size B, over all processes.
        image_size: Side R of the views, pixels.
        patch_size: Side of a patch of the image tower, pixels.
        mask_patch_size: Side of a block that is masked as one, pixels.
        mask_ratio: Share of the blocks to mask, 0 to 1, rounded up to whole blocks.
        crop_area: Smallest and largest share of the image's area in the strong view.
        flip_probability: Chance that the strong view is flipped.
        rand_augment: Distribution of the strong view's further operations.
        fill_color: RGB, 0 to 255, for what geometric operations uncover.
        seed: Not negative.
        num_epochs: Epochs in the whole run.
        start_step: Step of the whole run to start from; the batches are those that an
            uninterrupted run gets from there on.
        process_index: Which process this is.
        process_count: Number of processes.
        num_threads: Threads that make examples; 0 for none but the caller's.
        num_workers: Processes that do so, each with `num_threads` threads; 0 for this one alone.
        prefetch: Batches kept ready.

    Returns:
        A loader of batches of b = B / process_count:
        `image_weak`, `image_strong` uint8 (b, R, R, 3); `patch_mask` bool (b, N), patches
        row-major, True where masked; `record` int32 (b,), index in the source; `failed` int32
        (b,), index of the record that did not decode and whose place this record took, else -1;
        `reason` str (b,), why it did not, else empty; and for a labelled source `label` int32 (b,).

    Raises:
        UserError: The batch is larger than the source or is not divided by the processes,
            `start_step` lies beyond the end, or the mask's sizes do not fit. While iterating:
            replacement after replacement did not decode.
    """
    local_batch = _local_batch(batch_size, process_count)
    steps_per_epoch = len(source) // batch_size
    if not steps_per_epoch:
        raise UserError(
            f"batch_size {batch_size} is larger than the {len(source)} images in {source.path}"
        )
    if not 0 <= start_step <= num_epochs * steps_per_epoch:
        raise UserError(
            f"cannot start at step {start_step} of a run of {num_epochs} epochs "
            f"of {steps_per_epoch} steps"
        )
    transform = TrainTransform(
        source=source,
        image_size=image_size,
        patch_size=patch_size,
        mask_patch_size=mask_patch_size,
        mask_ratio=mask_ratio,
        crop_area=crop_area,
        flip_probability=flip_probability,
        rand_augment=rand_augment,
        fill_color=fill_color,
    )
    # Drawn once here so that sizes that don't fit are told before anything starts.
    draw_patch_mask(
        np.random.default_rng(0),
        image_size=image_size,
        patch_size=patch_size,
        mask_patch_size=mask_patch_size,
        mask_ratio=mask_ratio,
    )
    # Grain shuffles epoch e with seed + e: seeds that are neighbours must not become neighbours
    # there, or seed 1 would start with seed 0's second epoch.
    map_seed, shuffle_seed = (int(word) for word in np.random.SeedSequence(seed).generate_state(2))
    # Mapped before it is shuffled: Grain seeds a map by the position it maps, which is then
    # epoch * records + record, not the place in that epoch's order.
    examples = (
        grain.MapDataset.range(len(source))
        .random_map(transform, seed=map_seed)
        .shuffle(seed=shuffle_seed)[: steps_per_epoch * batch_size]
        .pipe(ProcessRows, local_batch, process_index, process_count)
        .repeat(num_epochs, reseed_each_epoch=True)[start_step * local_batch :]
    )
    return Loader(
        examples,
        batch_size=local_batch,
        num_threads=num_threads,
        num_workers=num_workers,
        prefetch=prefetch,
    )


def eval_loader(
    source: Source,
    *,
    batch_size: int,
    image_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 16,
    num_workers: int = 0,
    prefetch: int = 4,
) -> Loader:
    """Evaluation batches of this process: every record once over all processes, in order.

    All processes get the same number of batches, ceil(records / batch_size); the end is padded.
    The batches of processes 0, 1, ..., one after the other, are those of a single process.

    Args:
        source: The images.
        batch_size: Global batch size B, over all processes.
        image_size: Side R of the views, pixels.
        process_index: Which process this is.
        process_count: Number of processes.
        num_threads: Threads that make examples; 0 for none but the caller's.
        num_workers: Processes that do so, each with `num_threads` threads; 0 for this one alone.
        prefetch: Batches kept ready.

    Returns:
        A loader of batches of b = B / process_count: `image` uint8 (b, R, R, 3), black where not
        valid; `label` int32 (b,), -1 if unknown; `record` int32 (b,), index in the source, -1 for
        padding; `failed` int32 (b,), the record's index if it does not decode, else -1; `reason`
        str (b,), why it does not, else empty; `valid` bool (b,), False for padding and for what
        does not decode.

    Raises:
        UserError: The processes do not divide the batch.
    """
    local_batch = _local_batch(batch_size, process_count)
    padded = math.ceil(len(source) / batch_size) * batch_size
    examples = (
        grain.MapDataset.range(padded)
        .map(EvalTransform(source=source, image_size=image_size))
        .pipe(ProcessRows, local_batch, process_index, process_count)
    )
    return Loader(
        examples,
        batch_size=local_batch,
        num_threads=num_threads,
        num_workers=num_workers,
        prefetch=prefetch,
    )


def _local_batch(batch_size: int, process_count: int) -> int:
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch_size {batch_size} is not a positive multiple of the {process_count} processes"
        )
    return batch_size // process_count
