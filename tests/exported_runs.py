"""Finished runs with random parameters, without any training, for the tests of exports."""

import clip_checkpoints
import jax
import numpy as np
import siglip_checkpoints
import tiny_run

from must_jax.exporting.finished import HEADS, FinishedRun
from must_jax.models import (
    ClipSpec,
    TextSpec,
    TextTransformer,
    VisionSpec,
    VisionTransformer,
    encode,
)
from must_jax.state import init_params
from must_jax.train_step import normalize

OPENAI_TOWER = {
    "width": 64,
    "depth": 2,
    "num_heads": 1,
    "mlp_dim": 256,
    "activation": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
# All that OpenAI's layout takes for granted.
OPENAI = ClipSpec(
    vision=VisionSpec(image_size=16, patch_size=4, **OPENAI_TOWER),
    text=TextSpec(vocab_size=99, context_length=16, eot_token_id=None, **OPENAI_TOWER),
    embed_dim=24,
    logit_scale=float(np.exp(np.float64(np.float32(4.6052)))),
    image_mean=(0.48145466, 0.4578275, 0.40821073),
    image_std=(0.26862954, 0.26130258, 0.27577711),
)
# Nothing of it: towers that differ, an MLP whose ratio rounds, an epsilon, statistics.
ODD = ClipSpec(
    vision=VisionSpec(
        image_size=20,
        patch_size=4,
        width=48,
        depth=3,
        num_heads=3,
        mlp_dim=145,
        activation="gelu",
        layer_norm_eps=1e-6,
    ),
    text=TextSpec(
        vocab_size=99,
        context_length=12,
        eot_token_id=None,
        width=40,
        depth=2,
        num_heads=2,
        mlp_dim=100,
        activation="gelu",
        layer_norm_eps=1e-6,
    ),
    embed_dim=24,
    logit_scale=float(np.exp(np.float64(np.float32(3.5)))),
    image_mean=(0.5, 0.4, 0.3),
    image_std=(0.2, 0.25, 0.3),
)
SIGLIP_TOWER = OPENAI_TOWER | {"num_heads": 4, "activation": "gelu_tanh", "layer_norm_eps": 1e-6}
SIGLIP = ClipSpec(
    vision=VisionSpec(image_size=16, patch_size=4, pooling="attention", **SIGLIP_TOWER),
    text=TextSpec(
        vocab_size=siglip_checkpoints.PIECES,
        context_length=16,
        eot_token_id=None,
        pooling="last_token",
        is_causal=False,
        proj_bias=True,
        **SIGLIP_TOWER,
    ),
    embed_dim=64,
    logit_scale=float(np.exp(np.float64(np.float32(4.7655)))),
    logit_bias=float(np.float32(-12.93)),
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
)
TINY = tiny_run.SPEC
NAMES = ("circle", "square", "star", "Größe, schön", "five")


def random_tree(shapes, seed):
    """Values where initialisation has constants, so that nothing that is mixed up stays unseen."""
    leaves, structure = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    arrays = [0.2 * rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves]
    return jax.tree.unflatten(structure, arrays)


def make_run(spec, tokenizer, *, dtype="float32"):
    """A run; `tokenizer` is a folder to write."""
    if spec.vision.has_class_token:
        clip_checkpoints.write_tokenizer(tokenizer, spec.text.vocab_size)
    else:
        siglip_checkpoints.write_spiece(tokenizer)
    model = VisionTransformer(
        spec.vision,
        spec.embed_dim,
        num_classes=len(NAMES),
        logit_scale=spec.logit_scale,
        dtype=np.dtype(dtype),
    )
    student = random_tree(jax.eval_shape(lambda: init_params(model, jax.random.key(0))), 0)
    text = TextTransformer(spec.text, spec.embed_dim)
    ids = np.zeros((1, spec.text.context_length), np.int32)
    shapes = jax.eval_shape(lambda: text.init(jax.random.key(0), ids)["params"])
    return FinishedRun(
        spec=spec,
        params={
            "vision": {name: leaf for name, leaf in student.items() if name not in HEADS},
            "text": random_tree(shapes, 1),
        },
        classifier=student["classifier"],
        names=NAMES,
        model=model,
        tokenizer=tokenizer,
        tree="teacher",
        step=8,
    )


def tower_of(run):
    """The parameters that the run's model takes without a mask."""
    return {**run.params["vision"], "classifier": run.classifier}


def evaluation_logits(run, images):
    """What an evaluation computes of images (B, R, R, 3) in uint8."""

    @jax.jit
    def logits(params, images):
        images = normalize(images, mean=run.spec.image_mean, std=run.spec.image_std)
        return encode(run.model, params, images).logits

    return np.asarray(logits(tower_of(run), images))
