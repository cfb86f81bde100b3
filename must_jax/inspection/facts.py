"""What the config comes to, in numbers."""

from __future__ import annotations

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A run in numbers.

    Attributes:
        images: Training images.
        test_images: Labelled test images; 0 for none.
        num_classes: K.
        num_templates: Prompt templates in the file.
        batch_size: Global.
        epochs: Epochs.
        devices: Number of devices seen here.
        device_kind: What they are.
        image_size: Side of a view, pixels.
        num_patches: Patches of a view.
        masked_patches: How many of them are masked.
        state_bytes: Memory of student, teacher and optimizer on each device, without activations.
        learning_rate: Of the first step, the batch's size counted in.
        confidence_threshold: As configured.
        ema_decay: The teacher's decay once it no longer rises.
        start_weight: Share of the starting parameters in the teacher after the last step.
        checkpoint_step: Step of the latest checkpoint in the workdir, or None.
    """

    images: int
    test_images: int
    num_classes: int
    num_templates: int
    batch_size: int
    epochs: int
    devices: int
    device_kind: str
    image_size: int
    num_patches: int
    masked_patches: int
    state_bytes: int
    learning_rate: float
    confidence_threshold: float
    ema_decay: float
    start_weight: float
    checkpoint_step: int | None

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return self.images // self.batch_size

    @property
    def num_steps(self) -> int:
        """Steps of the run."""
        return self.epochs * self.steps_per_epoch

    @property
    def left_over(self) -> int:
        """Images that an epoch has no whole batch for; others in every epoch."""
        return self.images % self.batch_size

    @property
    def ema_horizon(self) -> float:
        """Steps that the teacher averages over, 1 / (1 - decay)."""
        return math.inf if self.ema_decay == 1 else 1 / (1 - self.ema_decay)


def start_weight(decays: np.ndarray) -> float:
    """Share of the starting parameters left in an average with these decays (steps,)."""
    return float(np.prod(np.asarray(decays, float)))
