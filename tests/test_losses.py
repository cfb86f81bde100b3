"""The losses against torch, closed forms and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.test_util import check_grads

from must_jax import losses

# float32 sums of a few hundred terms of order one.
RTOL = 2e-6


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parity
def test_self_training_loss_is_the_mean_over_confident_samples(rng):
    logits = rng.normal(0, 5, (16, 7)).astype(np.float32)
    labels = rng.integers(0, 7, 16)
    confident = rng.random(16) < 0.5
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits)[confident], torch.tensor(labels)[confident]
    )
    ours = losses.self_training_loss(jnp.asarray(logits), labels, confident)
    np.testing.assert_allclose(ours, expected, rtol=RTOL)


def test_self_training_loss_without_confident_samples_is_zero_with_zero_gradient():
    logits = jnp.full((4, 3), 1e4).at[:, 0].set(-1e4)
    value, grad = jax.value_and_grad(losses.self_training_loss)(
        logits, jnp.zeros(4, int), jnp.zeros(4, bool)
    )
    assert value == 0
    np.testing.assert_array_equal(grad, 0)


def test_fairness_loss_of_a_uniform_prediction_is_log_k():
    np.testing.assert_allclose(
        losses.fairness_loss(losses.mean_log_probs(jnp.ones((5, 8)))), np.log(8), rtol=RTOL
    )


def test_fairness_loss_matches_probability_space(rng):
    logits = rng.normal(0, 3, (16, 7))
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    ours = losses.fairness_loss(losses.mean_log_probs(jnp.asarray(logits, jnp.float32)))
    np.testing.assert_allclose(ours, -np.log(probs.mean(0)).mean(), rtol=RTOL)


def test_fairness_loss_stays_finite_where_probabilities_underflow():
    logits = jnp.zeros((4, 3)).at[:, 0].set(1e4)

    def loss(logits):
        return losses.fairness_loss(losses.mean_log_probs(logits))

    value, grad = jax.value_and_grad(loss)(logits)
    # Classes 1 and 2 have log-probability -1e4, class 0 has 0.
    np.testing.assert_allclose(value, 2e4 / 3, rtol=RTOL)
    assert np.isfinite(grad).all()


def test_moving_average_is_half_old_half_new_and_its_gradient_half(rng):
    old, new = rng.dirichlet(np.ones(6), 2)
    averaged = losses.moving_average_log_probs(jnp.log(new), jnp.log(old))
    np.testing.assert_allclose(np.exp(averaged), (old + new) / 2, rtol=RTOL)

    def first(new, old):
        return jnp.exp(losses.moving_average_log_probs(jnp.log(new), jnp.log(old)))[0]

    by_new, by_old = jax.grad(first, argnums=(0, 1))(jnp.asarray(new), jnp.asarray(old))
    np.testing.assert_allclose(by_new, [0.5, 0, 0, 0, 0, 0], rtol=RTOL)
    np.testing.assert_array_equal(by_old, 0)


def test_masked_image_modeling_loss_is_the_mean_absolute_difference(rng):
    reconstruction, target = rng.normal(size=(2, 3, 4, 12)).astype(np.float32)
    ours = losses.masked_image_modeling_loss(reconstruction, target)
    np.testing.assert_allclose(ours, np.abs(reconstruction - target).mean(), rtol=RTOL)


def test_alignment_loss_is_the_mean_squared_distance_of_patches_to_their_image(rng):
    patches = rng.normal(size=(3, 4, 5)).astype(np.float32)
    image = rng.normal(size=(3, 5)).astype(np.float32)
    expected = np.mean([((patches[i] - image[i]) ** 2).sum(-1) for i in range(3)])
    np.testing.assert_allclose(losses.alignment_loss(patches, image), expected, rtol=RTOL)


@pytest.mark.parametrize("num_masked", [0, 4])
def test_image_losses_with_nothing_masked_are_zero_and_finite(rng, num_masked):
    pixels = jnp.asarray(rng.normal(size=(2, 2, num_masked, 12)), jnp.float32)
    embeds = jnp.asarray(rng.normal(size=(2, num_masked, 5)), jnp.float32)
    image = jnp.asarray(rng.normal(size=(2, 5)), jnp.float32)
    value, grads = jax.value_and_grad(
        lambda pixels, embeds, image: (
            losses.masked_image_modeling_loss(pixels[0], pixels[1])
            + losses.alignment_loss(embeds, image)
        ),
        argnums=(0, 1, 2),
    )(pixels, embeds, image)
    assert (value == 0) == (num_masked == 0)
    assert all(np.isfinite(grad).all() for grad in grads)


def test_gradients_match_finite_differences(rng):
    logits = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)
    labels, confident = jnp.arange(6) % 5, jnp.arange(6) % 2 == 0
    patches = jnp.asarray(rng.normal(size=(2, 4, 3)), jnp.float32)
    image = jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)
    # Finite differences in float32: steps of 1e-2 leave errors of about a thousandth.
    close = {"order": 1, "atol": 5e-3, "rtol": 5e-3}
    check_grads(lambda x: losses.self_training_loss(x, labels, confident), (logits,), **close)
    check_grads(lambda x: losses.fairness_loss(losses.mean_log_probs(x)), (logits,), **close)
    check_grads(lambda p, i: losses.alignment_loss(p, i), (patches, image), **close)
    target = patches + jnp.sign(patches)  # far from the corner of the absolute value
    check_grads(lambda x: losses.masked_image_modeling_loss(x, target), (patches,), **close)
