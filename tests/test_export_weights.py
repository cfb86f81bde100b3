"""Smaller weights of an artifact: errors within their closed form, scales along the outputs."""

import jax
import ml_dtypes
import numpy as np
import pytest
from exported_runs import OPENAI, SIGLIP, make_run, tower_of

from must_jax.exporting.weights import SCALE, input_axes, is_matrix, pack, quantize, unpack


def random(*shape, seed=0):
    # Outliers, as trained matrices have them.
    return np.random.default_rng(seed).standard_t(3, shape).astype(np.float32)


def test_integers_are_within_half_a_step_of_every_weight():
    matrix = random(3, 40, 7)
    integers, scale = quantize(matrix, axes=(1,))
    assert (integers.dtype, integers.shape) == (np.int8, matrix.shape)
    assert (scale.dtype, scale.shape) == (np.float32, (3, 1, 7))
    largest = np.abs(matrix).max(axis=1, keepdims=True)
    error = np.abs(integers.astype(np.float64) * scale - matrix)
    # Half a step is max / 254; float32 division and scale add 127 units of 2**-24 of a step.
    assert (error <= largest / 254 * (1 + 2**-14)).all()
    assert (error.max(axis=1, keepdims=True) > largest / 254 / 4).all()
    # The largest of a channel is hit, and 0 stays 0, whose sign is symmetric.
    assert (np.abs(integers.astype(int)).max(axis=1) == 127).all()
    np.testing.assert_array_equal(quantize(-matrix, axes=(1,))[0], -integers)


def test_channels_have_scales_of_their_own():
    matrix = random(30, 5)
    powers = np.array([[1, 2, 4, 0.5, 1024]], np.float32)
    integers, scale = quantize(matrix, axes=(0,))
    scaled, scales = quantize(matrix * powers, axes=(0,))
    np.testing.assert_array_equal(scaled, integers)
    np.testing.assert_array_equal(scales, scale * powers)


def test_a_channel_of_zeros_stays_zero():
    matrix = random(30, 5)
    matrix[:, 2] = 0
    integers, scale = quantize(matrix, axes=(0,))
    assert not integers[:, 2].any()
    assert np.isfinite(integers * scale).all()


# Of every matrix of both image towers: the axes that its product sums over.
AXES = {
    "patch_embed/kernel": (0,),
    "proj": (0,),
    "blocks/attn/qkv/kernel": (1,),
    "blocks/attn/out/kernel": (1, 2),
    "blocks/mlp/fc1/kernel": (1,),
    "blocks/mlp/fc2/kernel": (1,),
    "pool/query/kernel": (0,),
    "pool/key/kernel": (0,),
    "pool/value/kernel": (0,),
    "pool/out/kernel": (0, 1),
    "pool/mlp/fc1/kernel": (0,),
    "pool/mlp/fc2/kernel": (0,),
}


def test_all_matrices_are_known_and_nothing_else_is_one(tmp_path):
    found = set()
    for spec in (OPENAI, SIGLIP):
        run = make_run(spec, tmp_path / str(spec.embed_dim))
        found |= {name for name in pack(tower_of(run), kind="float32") if is_matrix(name)}
    assert found == AXES.keys()
    assert {name: input_axes(name) for name in AXES} == AXES


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_what_is_packed_is_unpacked(kind, tmp_path):
    tower = tower_of(make_run(SIGLIP, tmp_path / "tokenizer"))
    packed = pack(tower, kind=kind)
    # numpy's own types alone: a file of them needs no other package.
    assert all(array.dtype.isbuiltin for array in packed.values())
    unpacked = jax.jit(unpack)(packed)
    assert jax.tree.structure(unpacked) == jax.tree.structure(tower)
    plain = pack(tower, kind="float32")
    for name, array in pack(jax.device_get(unpacked), kind="float32").items():
        if kind == "float32" or not is_matrix(name):
            expected = plain[name]
        elif kind == "bfloat16":
            expected = plain[name].astype(ml_dtypes.bfloat16)
        else:
            expected = packed[name] * packed[name + SCALE]
        np.testing.assert_array_equal(array, expected, err_msg=name)
