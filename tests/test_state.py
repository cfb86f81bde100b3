"""The student before its first step: what comes from where."""

import functools

import jax
import numpy as np
import tiny_run

from must_jax.models import VisionTransformer
from must_jax.state import init_params, init_student


def test_the_student_is_the_checkpoint_with_the_heads_of_a_fresh_model():
    """Bit for bit those of a model whose every parameter is drawn, though no other one is."""
    spec = tiny_run.SPEC
    model = VisionTransformer(spec.vision, spec.embed_dim, num_classes=3)
    fresh = jax.jit(functools.partial(init_params, model))(jax.random.key(1))
    image = np.zeros((1, spec.vision.image_size, spec.vision.image_size, 3), np.float32)
    tower = VisionTransformer(spec.vision, spec.embed_dim)
    clip = tower.init(jax.random.key(2), image)["params"]
    classifier = np.ones((spec.embed_dim, 3), np.float32)
    student = init_student(model, clip, classifier, jax.random.key(1))
    heads = {name: fresh[name] for name in ("mask_token", "decoder", "ln_patch")}
    expected = {**heads, **clip, "classifier": classifier}
    assert student.keys() == fresh.keys()
    jax.tree.map(np.testing.assert_array_equal, student, expected)
