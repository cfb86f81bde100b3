"""Losses and gradients are finite for any input; a step that is not finite changes nothing."""

import dataclasses
import functools

import golden_numbers as golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from optax import constant_schedule

from must_jax import losses, sharding
from must_jax.eval_step import count_right
from must_jax.models import VisionTransformer
from must_jax.nonfinite import name_some
from must_jax.optimizer import cosine_schedule, make_optimizer
from must_jax.state import init_params, init_state
from must_jax.train_step import Method, compute_losses, train_step

# 100 is CLIP's scale: what unit vectors give lies within it, and a bf16 tower may round beyond.
LOGITS = arrays.arrays(
    np.float32, (4, 5), elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False)
)
few = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@functools.cache
def _of_logits():
    def loss(logits, labels, confident, previous):
        log_probs = losses.mean_log_probs(logits)
        averaged = losses.moving_average_log_probs(log_probs, previous)
        return (
            losses.self_training_loss(logits, labels, confident)
            + losses.fairness_loss(log_probs)
            + losses.fairness_loss(averaged)
        )

    return jax.jit(jax.value_and_grad(loss))


@few
@given(LOGITS, arrays.arrays(bool, 4), arrays.arrays(np.float32, 5, elements=st.floats(-1e4, 0)))
def test_losses_of_logits_are_finite(logits, confident, previous):
    """All or none confident, one class certain everywhere, probabilities that underflow."""
    value, grad = _of_logits()(logits, np.argmax(logits, 1), confident, previous)
    assert np.isfinite(value)
    assert np.isfinite(grad).all()


@functools.cache
def _little(dtype, num_classes, pooling="class_token"):
    """Model, parameters, and a compiled loss with gradients, of images and teacher's logits."""
    spec = dataclasses.replace(golden.SPEC, pooling=pooling)
    embed_dim = golden.EMBED_DIM if spec.has_class_token else spec.width
    model = VisionTransformer(spec, embed_dim, num_classes=num_classes, dtype=jnp.dtype(dtype))
    params = jax.jit(functools.partial(init_params, model))(jax.random.key(0))
    method = Method(
        confidence_threshold=0.5,
        self_train_weight=1.0,
        fair_weight=1.0,
        mim_weight=1.0,
        align_weight=1.0,
        num_masked=4,
        steps_per_epoch=2,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.25, 0.25, 0.25),
    )

    def loss(params, teacher_logits, images, mask, previous_log_probs):
        return compute_losses(
            params,
            model=model,
            method=method,
            teacher_logits=teacher_logits,
            images=images,
            patch_mask=mask,
            previous_log_probs=previous_log_probs,
        )

    return model, method, params, jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize(
    "pixels", [lambda rng: 0, lambda rng: 255, lambda rng: 128, lambda rng: rng.integers(0, 256)]
)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e4])
def test_losses_and_gradients_of_the_tower_are_finite(dtype, num_classes, pixels, scale):
    """Constant images, a batch of one, parameters that are tiny, dead or huge, any confidence."""
    _, _, params, compute = _little(dtype, num_classes)
    rng = np.random.default_rng(0)
    side = golden.SPEC.image_size
    images = np.full((1, side, side, 3), pixels(rng), np.uint8)
    mask = np.zeros((1, golden.SPEC.num_patches), bool)
    mask[:, :4] = True
    params = jax.tree.map(lambda a: a * scale, params)
    for confidence in (0.0, 1e4):
        teacher_logits = np.zeros((1, num_classes), np.float32)
        teacher_logits[:, 0] = confidence
        _assert_finite(compute(params, teacher_logits, images, mask, np.zeros(num_classes)))


def _assert_finite(computed):
    (loss, (log_probs, metrics)), grads = computed
    assert np.isfinite(loss)
    assert np.isfinite(log_probs).all()
    assert all(np.isfinite(value) for value in metrics.values())
    for path, grad in jax.tree.leaves_with_path(grads):
        assert np.isfinite(grad).all(), jax.tree_util.keystr(path)


SIDE = golden.SPEC.image_size
ONE_A_DEVICE = 8
# Few distinct pixels, or the same throughout, as hypothesis draws arrays, and noise.
IMAGES = st.one_of(
    arrays.arrays(np.uint8, (ONE_A_DEVICE, SIDE, SIDE, 3)),
    st.integers(0, 2**32 - 1).map(
        lambda seed: np.random.default_rng(seed).integers(
            0, 256, (ONE_A_DEVICE, SIDE, SIDE, 3), np.uint8
        )
    ),
)
TEACHER_LOGITS = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)
# Beyond, activations overflow by themselves; such a step is skipped.
SCALES = st.one_of(st.just(0.0), st.floats(-30, 4).map(lambda exponent: 10**exponent))


# With 600 classes, the fairness average moves.
@pytest.mark.parametrize(
    ("pooling", "num_classes"), [("class_token", 3), ("class_token", 600), ("attention", 3)]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.slow
def test_the_towers_losses_and_gradients_are_finite_for_any_input(dtype, pooling, num_classes):
    """CLIP's and SigLIP's, with one image on each of eight devices."""
    _, _, params, compute = _little(dtype, num_classes, pooling)
    mesh = sharding.make_mesh()
    assert sharding.num_row_shards(mesh) == ONE_A_DEVICE
    rows = sharding.batch_sharding(mesh)
    mask = np.zeros((ONE_A_DEVICE, golden.SPEC.num_patches), bool)
    mask[:, :4] = True

    @settings(few, max_examples=25)
    @given(
        images=IMAGES,
        teacher_logits=arrays.arrays(
            np.float32, (ONE_A_DEVICE, num_classes), elements=TEACHER_LOGITS, fill=TEACHER_LOGITS
        ),
        previous=arrays.arrays(np.float32, num_classes, elements=st.floats(-1e4, 0, width=32)),
        scale=SCALES,
    )
    def are_finite(images, teacher_logits, previous, scale):
        batch = (jax.device_put(array, rows) for array in (teacher_logits, images, mask))
        scaled = sharding.replicate(jax.tree.map(lambda a: a * np.float32(scale), params), mesh)
        _assert_finite(compute(scaled, *batch, sharding.replicate(previous, mesh)))

    are_finite()


@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e38])
def test_a_step_that_is_not_finite_changes_the_count_of_steps_alone(poison, num_devices):
    """On every device: each holds a copy of the whole state."""
    model, method, params, _ = _little("float32", 3)

    def constant(step):
        return jnp.float32(1e-3)

    optimizer = make_optimizer(params, schedule=constant, weight_decay=0.05, layer_decay=0.65)
    state = init_state(params, optimizer=optimizer)
    rng = np.random.default_rng(0)
    side = golden.SPEC.image_size
    batch = {
        name: rng.integers(0, 256, (8, side, side, 3), np.uint8)
        for name in ("image_weak", "image_strong")
    }
    batch["patch_mask"] = np.zeros((8, golden.SPEC.num_patches), bool)
    batch["patch_mask"][:, :4] = True
    mesh = sharding.make_mesh(devices=jax.devices()[:num_devices])
    batch = sharding.to_mesh(batch, mesh)
    step = jax.jit(
        functools.partial(
            train_step,
            model=model,
            method=method,
            optimizer=optimizer,
            learning_rate=constant,
            ema_decay=constant,
        ),
        out_shardings=sharding.replicated(mesh),
    )
    kernel = params["decoder"]["kernel"]
    poisoned = {**params, "decoder": {**params["decoder"], "kernel": kernel.at[0, 0].set(poison)}}
    state = dataclasses.replace(state, params=poisoned)
    after, metrics = step(sharding.replicate(state, mesh), batch)
    assert not metrics["is_finite"]
    assert after.step == 1
    for new, old in zip(
        jax.tree.leaves(dataclasses.replace(after, step=after.step - 1)),
        jax.tree.leaves(state),
        strict=True,
    ):
        assert len(new.addressable_shards) == num_devices
        for copy in new.addressable_shards:
            np.testing.assert_array_equal(copy.data, old)
    state = dataclasses.replace(state, params=params)
    after, metrics = step(sharding.replicate(state, mesh), batch)
    assert metrics["is_finite"]
    assert not np.array_equal(after.params["decoder"]["kernel"], kernel)


NUM_STEPS = 8


def _steps(num_classes, **options):
    """A first state, a jitted step of a run of `NUM_STEPS`, four an epoch, and its schedule."""
    model, method, params, _ = _little("float32", num_classes)
    schedule = cosine_schedule(
        learning_rate=1e-3, min_learning_rate=1e-5, batch_size=256, num_steps=NUM_STEPS
    )
    optimizer = make_optimizer(params, schedule=schedule, weight_decay=0.0, layer_decay=0.65)
    step = functools.partial(
        train_step,
        model=model,
        method=dataclasses.replace(method, steps_per_epoch=4, **options),
        optimizer=optimizer,
        learning_rate=schedule,
        ema_decay=lambda _: 0.9,
    )
    return init_state(params, optimizer=optimizer), jax.jit(step), schedule


def _batch(num_masked=4):
    rng = np.random.default_rng(0)
    shape = (8, golden.SPEC.image_size, golden.SPEC.image_size, 3)
    mask = np.zeros((8, golden.SPEC.num_patches), bool)
    mask[:, :num_masked] = True
    views = {name: rng.integers(0, 256, shape, np.uint8) for name in ("image_weak", "image_strong")}
    return views | {"patch_mask": mask}


def _skip(step, state):
    """The state after a step whose gradients are not finite."""
    decoder = jax.tree.map(lambda a: jnp.full_like(a, jnp.nan), state.params["decoder"])
    poisoned = dataclasses.replace(state, params={**state.params, "decoder": decoder})
    after, metrics = step(poisoned, _batch())
    assert not metrics["is_finite"]
    return dataclasses.replace(after, params=state.params)


def test_a_skipped_step_counts_in_the_schedule_and_not_in_the_moments():
    state, step, schedule = _steps(3)
    state, _ = step(state, _batch())
    for _ in range(3):
        state = _skip(step, state)
    after, metrics = step(state, _batch())
    np.testing.assert_allclose(metrics["learning_rate"], schedule(4), rtol=1e-6)
    adam = after.opt_state[0]
    assert adam.count == 2
    mean = adam.mu["classifier"] / (1 - 0.9**2)
    update = mean / (jnp.sqrt(adam.nu["classifier"] / (1 - 0.999**2)) + 1e-8)
    moved = state.params["classifier"] - after.params["classifier"]
    # A difference of parameters of about 1 is rounded to 1e-7; the rates differ by half and more.
    np.testing.assert_allclose(moved, schedule(4) * update, rtol=1e-3, atol=2e-7)
    assert schedule(1) > 1.5 * schedule(4)


def test_an_average_starts_anew_though_the_first_step_of_an_epoch_is_skipped():
    state, step, _ = _steps(600)
    fresh, expected = step(state, _batch())
    after, metrics = step(_skip(step, state), _batch())
    np.testing.assert_array_equal(metrics["loss_fair"], expected["loss_fair"])
    np.testing.assert_array_equal(after.mean_log_probs, fresh.mean_log_probs)
    # And in a later epoch, where there is an average to be forgotten.
    late = dataclasses.replace(fresh, step=jnp.int32(4))
    _, expected = step(late, _batch())
    _, metrics = step(_skip(step, late), _batch())
    np.testing.assert_array_equal(metrics["loss_fair"], expected["loss_fair"])


def test_a_teacher_without_numbers_is_no_finite_step():
    state, step, _ = _steps(3)
    damaged = state.teacher_params["classifier"].at[0, 0].set(jnp.nan)
    teacher = {**state.teacher_params, "classifier": damaged}
    after, metrics = step(dataclasses.replace(state, teacher_params=teacher), _batch())
    assert not metrics["is_finite"]
    np.testing.assert_array_equal(after.params["classifier"], state.params["classifier"])


def test_an_absurd_rate_makes_no_infinite_parameters():
    """Of finite gradients: the largest rate and decay that a config may have."""
    model, method, params, _ = _little("float32", 3)
    optimizer = make_optimizer(
        params, schedule=constant_schedule(2.0**127), weight_decay=2.0**127, layer_decay=1.0
    )
    step = functools.partial(
        train_step,
        model=model,
        method=method,
        optimizer=optimizer,
        learning_rate=constant_schedule(2.0**127),
        ema_decay=lambda _: 0.9,
    )
    state = init_state(params, optimizer=optimizer)
    after, metrics = jax.jit(step)(state, _batch())
    assert np.isfinite([metrics["loss"], metrics["grad_norm"]]).all()
    assert not metrics["is_finite"]
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, state.opt_state)


@pytest.mark.parametrize("grad_accumulation", [1, 2])
def test_a_step_without_masked_patches(grad_accumulation):
    state, step, _ = _steps(3, num_masked=0, grad_accumulation=grad_accumulation)
    _, metrics = step(state, _batch(num_masked=0))
    assert metrics["is_finite"]
    assert metrics["loss_mim"] == metrics["loss_align"] == 0
    # To the rounding of the sum, which some processors do together with that of a product in it.
    parts = metrics["loss_self_train"] + metrics["loss_fair"]
    np.testing.assert_allclose(parts, metrics["loss"], rtol=2**-22)


def test_a_model_without_numbers_is_right_about_no_image():
    model, method, params, _ = _little("float32", 3)
    count = functools.partial(
        count_right, model=model, image_mean=method.image_mean, image_std=method.image_std
    )
    batch = {
        "image": _batch()["image_weak"],
        "label": np.zeros(8, np.int32),
        "valid": np.ones(8, bool),
    }
    assert count(params, batch).tolist()[1] == [8, 0, 0]
    params = {**params, "classifier": jnp.full_like(params["classifier"], jnp.nan)}
    assert count(params, batch).tolist() == [[0, 0, 0], [8, 0, 0]]


def test_a_long_batch_is_named_in_short():
    names = [f"{n}.png" for n in range(10)]
    assert name_some(names[:8]) == ", ".join(names[:8])
    assert name_some(names) == ", ".join(names[:8]) + " and 2 more"
