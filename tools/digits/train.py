"""The pretraining loop."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from digits import augment, captions, fonts, model
from must_jax.class_names import SLOT
from must_jax.models.spec import ClipSpec
from must_jax.tokenizer import Tokenizer, tokenize
from must_jax.zero_shot import build_classifier

SMOOTHING = 0.1
WEIGHT_DECAY = 0.05
PEAK_RATE = 2e-3
FIRST_LOGIT_SCALE = 10.0
WARMUP_STEPS = 200
EVALUATION_PICTURES = 1000


class CaptionTable:
    """Token ids of every caption, by digit and font category."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokens = np.stack(
            [
                [
                    tokenize(
                        captions.captions(digit=digit, category=category),
                        tokenizer=tokenizer,
                        context_length=model.CONTEXT_LENGTH,
                    )
                    for category in captions.CATEGORIES
                ]
                for digit in range(10)
            ]
        )

    def draw(
        self, rng: np.random.Generator, digits: np.ndarray, categories: np.ndarray
    ) -> np.ndarray:
        """One caption for each digit and category index, (B, CONTEXT_LENGTH)."""
        which = rng.integers(0, self._tokens.shape[2], len(digits))
        return self._tokens[digits, categories, which]


def logit_scale(step: jax.Array | int, *, steps: int) -> jax.Array:
    """From 10 to 100 over the first third of the run, then 100: started at 100, all collapses."""
    progress = jnp.minimum(3 * jnp.asarray(step) / steps, 1.0)
    return FIRST_LOGIT_SCALE * (model.LOGIT_SCALE / FIRST_LOGIT_SCALE) ** progress


def variation(step: jax.Array | int, *, steps: int) -> jax.Array:
    """How widely pictures may vary: clean prints at first, everything from a third of the run."""
    return jnp.minimum(3 * jnp.asarray(step) / steps, 1.0)


def _optimizer(steps: int) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(
        0.0, PEAK_RATE, min(WARMUP_STEPS, steps // 10), steps, end_value=PEAK_RATE / 100
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            rate,
            b2=0.98,
            weight_decay=WEIGHT_DECAY,
            # The blocks' norms and biases are stacked to two axes and so decay too.
            mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
        ),
    )


def zero_shot_accuracy(
    params: model.Params,
    shapes: fonts.Shapes,
    *,
    spec: ClipSpec,
    tokenizer: Tokenizer,
    seed: int,
    limit: float,
) -> float:
    """Zero-shot accuracy on fresh pictures of `shapes`, varied up to `limit`."""
    rng = np.random.default_rng(seed)
    digits = rng.integers(0, 10, EVALUATION_PICTURES)
    ink = shapes.ink[rng.integers(0, len(shapes.ink), EVALUATION_PICTURES), digits]
    images = augment.draw_pictures(jax.random.key(seed), ink, limit)
    classifier = build_classifier(
        spec=spec,
        text_params=params["text"],
        tokenizer=tokenizer,
        texts=[
            [template.replace(SLOT, word) for template in captions.ZERO_SHOT_TEMPLATES]
            for word in captions.WORDS
        ],
    )
    predicted = jnp.argmax(model.encode_images(params, images, spec=spec) @ classifier, axis=1)
    return float(np.mean(np.asarray(predicted) == digits))


def pretrain(
    tokenizer: Tokenizer,
    shapes: fonts.Shapes,
    *,
    seed: int,
    steps: int,
    batch_size: int,
) -> tuple[ClipSpec, model.Params]:
    """Trains both towers from nothing on pictures of `shapes`; prints progress.

    Returns:
      The architecture and the parameters, the same for the same arguments.
    """
    spec = model.clip_spec(vocab_size=tokenizer.num_tokens, end_token_id=tokenizer.end_id)
    categories = np.array([captions.CATEGORIES.index(name) for name in shapes.category])
    table = CaptionTable(tokenizer)
    rng = np.random.default_rng(seed)
    init_key, picture_key = jax.random.split(jax.random.key(seed))
    params = model.init_params(init_key, spec=spec)
    optimizer = _optimizer(steps)
    opt_state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(
        params: model.Params,
        opt_state: optax.OptState,
        step: jax.Array,
        ink: jax.Array,
        tokens: jax.Array,
        digits: jax.Array,
    ) -> tuple[model.Params, optax.OptState, jax.Array]:
        limit = variation(step, steps=steps)
        images = augment.draw_pictures(jax.random.fold_in(picture_key, step), ink, limit)

        def loss_of(params: model.Params) -> jax.Array:
            return model.contrastive_loss(
                model.encode_images(params, images, spec=spec),
                model.encode_texts(params, tokens, spec=spec),
                digits,
                scale=logit_scale(step, steps=steps),
                smoothing=SMOOTHING,
            )

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    start = time.monotonic()
    for step in range(steps):
        digits = rng.integers(0, 10, batch_size)
        faces = rng.integers(0, len(shapes.ink), batch_size)
        tokens = table.draw(rng, digits, categories[faces])
        params, opt_state, loss = train_step(
            params, opt_state, step, shapes.ink[faces, digits], tokens, digits
        )
        if (step + 1) % max(1, min(100, steps // 5)) == 0:
            elapsed = time.monotonic() - start
            left = elapsed / (step + 1) * (steps - step - 1)
            print(
                f"step {step + 1}/{steps}  loss {float(loss):.3f}  {elapsed:.0f} s,"
                f" {left:.0f} s to go",
                flush=True,
            )
    return spec, jax.device_get(params)
