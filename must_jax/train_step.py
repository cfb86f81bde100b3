"""The method (Li, Savarese and Hoi, 2023): one step of masked unsupervised self-training."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from must_jax import losses
from must_jax.models import VisionTransformer, encode
from must_jax.models.layers import take_rows
from must_jax.models.vit import patchify
from must_jax.optimizer import at_step
from must_jax.state import Params, TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """The method's constants; the weights are those of the losses, 0 leaving one out.

    `num_masked` patches of every strong view are masked. `grad_accumulation` parts of the batch are
    encoded one after the other; every loss is still that of the whole batch.
    """

    confidence_threshold: float
    self_train_weight: float
    fair_weight: float
    mim_weight: float
    align_weight: float
    num_masked: int
    steps_per_epoch: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    grad_accumulation: int = 1

    def normalize(self, images: jax.Array) -> jax.Array:
        """Images (B, R, R, 3) in uint8, with the checkpoint's statistics."""
        return normalize(images, mean=self.image_mean, std=self.image_std)


def normalize(
    images: jax.Array, *, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> jax.Array:
    """Images (B, R, R, 3) in uint8, less `mean` and over `std`, which are for pixels in 0..1."""
    offset, scale = (
        (255 * np.array(values)).astype(np.float32).reshape(1, 1, 1, 3) for values in (mean, std)
    )
    return (images - offset) / scale


def mim_target(images: jax.Array, *, patch_size: int) -> jax.Array:
    """Images (B, R, R, 3) as (B, N, 3 * p * p), in the decoder's channel order."""
    patches = patchify(images, patch_size=patch_size)
    return jnp.moveaxis(patches, -1, 2).reshape(*patches.shape[:2], -1)


def known_accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of the labels (B,) other than -1 at which logits (B, K) are largest; 0 without any."""
    is_known = labels >= 0
    right = is_known & (jnp.argmax(logits, axis=-1) == labels)
    return jnp.sum(right) / jnp.maximum(jnp.sum(is_known), 1)


def masked_patches(patch_mask: jax.Array, *, num_masked: int) -> jax.Array:
    """The `num_masked` = M places (B, M) int32 at which patch_mask (B, N) is True, ascending."""
    order = jnp.argsort(~patch_mask, axis=1, stable=True)
    return order[:, :num_masked].astype(jnp.int32)


def in_parts(function: Callable[..., Any], num_parts: int, *arrays: jax.Array) -> Any:
    """`function(*arrays)` for parts of the arrays' rows, stacked: every leaf is (num_parts, ...).

    One part runs after the other, and the backward pass keeps no more than its inputs. A part takes
    every `num_parts`-th row, so that a device works on its own rows throughout.
    """
    parts = [x.reshape(len(x) // num_parts, num_parts, *x.shape[1:]).swapaxes(0, 1) for x in arrays]
    if num_parts == 1:
        return jax.tree.map(lambda x: x[None], function(*(x[0] for x in parts)))
    return jax.lax.map(jax.checkpoint(lambda part: function(*part), prevent_cse=False), parts)


def whole(parts: jax.Array) -> jax.Array:
    """The rows (B, ...) in their order, from `in_parts`' (num_parts, B / num_parts, ...)."""
    return parts.swapaxes(0, 1).reshape(-1, *parts.shape[2:])


def compute_losses(
    params: Params,
    *,
    model: VisionTransformer,
    method: Method,
    teacher_logits: jax.Array,
    images: jax.Array,
    patch_mask: jax.Array,
    previous_log_probs: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, Metrics]]:
    """The training loss of the student on strong views.

    Args:
      params: the student's.
      teacher_logits: (B, K), the teacher's on the weak views.
      images: (B, R, R, 3) uint8, strong views.
      patch_mask: (B, N) bool, `num_masked` of each row.
      previous_log_probs: (K,), the fairness average up to the step before; zeros, which no average
        is, if there is none yet.

    Returns:
      The loss, and beside it the fairness average (K,) and the metrics.
    """
    confidence = jnp.max(jax.nn.softmax(teacher_logits), axis=-1)
    pseudo_labels = jnp.argmax(teacher_logits, axis=-1)
    confident = confidence > method.confidence_threshold

    def encode_part(images: jax.Array, masked: jax.Array) -> tuple[jax.Array, ...]:
        images = method.normalize(images)
        student = encode(model, params, images, masked)
        target = take_rows(mim_target(images, patch_size=model.spec.patch_size), masked)
        mim = losses.masked_image_modeling_loss(student.reconstruction, target)
        align = losses.alignment_loss(student.patch_embeds, student.image_embed)
        return student.logits, mim, align

    masked = masked_patches(patch_mask, num_masked=method.num_masked)
    parts, mim, align = in_parts(encode_part, method.grad_accumulation, images, masked)
    logits = whole(parts)

    log_probs = losses.mean_log_probs(logits)
    fair_scale = 1.0
    if model.num_classes >= losses.MOVING_AVERAGE_CLASSES:
        averaged = losses.moving_average_log_probs(log_probs, previous_log_probs)
        log_probs = jnp.where(jnp.any(previous_log_probs != 0), averaged, log_probs)
        fair_scale = 1 / (1 - losses.FAIRNESS_MOMENTUM)

    terms = {
        "loss_self_train": losses.self_training_loss(logits, pseudo_labels, confident),
        "loss_fair": fair_scale * losses.fairness_loss(log_probs),
        "loss_mim": jnp.mean(mim),
        "loss_align": jnp.mean(align),
    }
    loss = (
        method.self_train_weight * terms["loss_self_train"]
        + method.fair_weight * terms["loss_fair"]
        + method.mim_weight * terms["loss_mim"]
        + method.align_weight * terms["loss_align"]
    )
    metrics = terms | {"loss": loss, "confident_fraction": jnp.mean(confident)}
    return loss, (log_probs, metrics)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: VisionTransformer,
    method: Method,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    ema_decay: optax.Schedule,
) -> tuple[TrainState, Metrics]:
    """One step: pseudo-labels from the teacher, four losses, AdamW, moving average.

    Args:
      state: the state before the step.
      batch: `image_weak` and `image_strong`, (B, R, R, 3) uint8; `patch_mask`, (B, N) bool; and,
        where labels exist, `label`, (B,) int32, -1 if unknown, which only a metric reads.

    Returns:
      The state after the step, and scalars on the device, named as in `compute_losses`. Where the
      loss, a gradient, the teacher's logits or a new parameter are not finite, nothing but the
      state's step changes, on all devices alike; the schedules go on with the steps.
    """

    def pseudo_label(images: jax.Array) -> jax.Array:
        return encode(model, state.teacher_params, method.normalize(images)).logits

    # The average starts anew with each epoch, and if a step is skipped, with the next.
    is_first = state.step % method.steps_per_epoch == 0
    state = dataclasses.replace(
        state, mean_log_probs=jnp.where(is_first, 0.0, state.mean_log_probs)
    )
    teacher_logits = whole(in_parts(pseudo_label, method.grad_accumulation, batch["image_weak"]))

    (_, (log_probs, metrics)), grads = jax.value_and_grad(compute_losses, has_aux=True)(
        state.params,
        model=model,
        method=method,
        teacher_logits=teacher_logits,
        images=batch["image_strong"],
        patch_mask=batch["patch_mask"],
        previous_log_probs=state.mean_log_probs,
    )
    opt_state = at_step(state.opt_state, state.step)
    updates, opt_state = optimizer.update(grads, opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = ema_decay(state.step)
    teacher_params = optax.incremental_update(params, state.teacher_params, 1 - decay)

    grad_norm = optax.tree.norm(grads)
    is_finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)
    # Of a teacher without numbers, no pseudo-label is confident, and the losses are finite.
    is_finite &= jnp.all(jnp.isfinite(teacher_logits))
    # Of finite gradients, an absurd rate makes infinite parameters.
    is_finite &= jnp.isfinite(optax.tree.norm(params, ord=jnp.inf))
    metrics |= {
        "learning_rate": learning_rate(state.step),
        "ema_decay": decay,
        "grad_norm": grad_norm,
        "is_finite": is_finite,
    }
    if "label" in batch:
        metrics["pseudo_label_accuracy"] = known_accuracy(teacher_logits, batch["label"])
    stepped = dataclasses.replace(
        state,
        params=params,
        teacher_params=teacher_params,
        opt_state=opt_state,
        mean_log_probs=log_probs,
    )
    state = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), stepped, state)
    return dataclasses.replace(state, step=state.step + 1), metrics
