"""What is counted in compiled programs: against the compiler's own count and closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from must_jax.chips import Chip
from must_jax.flops import plain_flops
from must_jax.planning import shapes
from must_jax.planning.costs import Collective, convolution_flops, count, group_size
from must_jax.planning.hlo import parse
from must_jax.planning.roofline import link_seconds, roofline


def compiled(function, *arrays, **keywords):
    return jax.jit(function, **keywords).lower(*arrays).compile()


def counted(function, *arrays, **keywords):
    return count(parse(compiled(function, *arrays, **keywords).as_text()))


def zeros(*shape):
    return jnp.zeros(shape)


def test_products_are_those_of_the_compilers_count():
    def function(x, w):
        return jnp.einsum("bij,bjk->bik", jnp.einsum("bij,jk->bik", x, w), x.swapaxes(1, 2))

    arrays = zeros(3, 8, 16), zeros(16, 16)
    assert counted(function, *arrays).flops == 2 * 3 * (8 * 16 * 16 + 8 * 16 * 8)
    # No elementwise work in it, so the two agree exactly.
    analysis = compiled(function, *arrays).cost_analysis()
    assert counted(function, *arrays).flops == analysis["flops"]


def test_a_loop_counts_its_trips():
    def once(x, w):
        return jnp.tanh(x @ w), None

    def looped(x, w):
        return jax.lax.scan(once, x, w)[0]

    def nested(x, w):
        return jax.lax.fori_loop(0, 5, lambda _, x: looped(x, w), x)

    x, w = zeros(4, 32), zeros(7, 32, 32)
    body = 2 * 4 * 32 * 32
    assert counted(looped, x, w).flops == 7 * body
    assert counted(nested, x, w).flops == 5 * 7 * body
    # A turn slices one layer off the stack (read, written) and reads it, but not all of the stack.
    layers = 7 * 32 * 32 * 4
    assert layers <= counted(looped, x, w).bytes_accessed <= 4 * layers


def test_a_loop_of_unknown_length_is_refused_not_guessed():
    def looped(x, n):
        return jax.lax.fori_loop(n, 10, lambda _, x: jnp.sin(x @ x), x)

    with pytest.raises(ValueError, match="the trips of the loop"):
        counted(looped, zeros(4, 4), jnp.int32(3))


@pytest.mark.parametrize(
    ("image", "kernel", "keywords"),
    [
        ((2, 3, 9, 9), (4, 3, 3, 3), {"window_strides": (1, 1), "padding": "SAME"}),
        ((2, 3, 9, 9), (4, 3, 3, 3), {"window_strides": (2, 2), "padding": "VALID"}),
        (
            (2, 3, 9, 9),
            (4, 3, 3, 3),
            {"window_strides": (1, 1), "padding": [(2, 1), (0, 3)], "rhs_dilation": (2, 1)},
        ),
        (
            (2, 3, 5, 5),
            (4, 3, 3, 3),
            {"window_strides": (1, 1), "padding": [(2, 2)] * 2, "lhs_dilation": (2, 2)},
        ),
        (
            (2, 6, 8, 8),
            (4, 3, 2, 2),
            {"window_strides": (1, 1), "padding": "VALID", "feature_group_count": 2},
        ),
        (
            (4, 3, 8, 8),
            (6, 3, 2, 2),
            {"window_strides": (1, 1), "padding": "VALID", "batch_group_count": 2},
        ),
    ],
    ids=["padded", "strided", "dilated", "transposed", "grouped", "batch groups"],
)
def test_convolutions_count_what_isnt_padding(image, kernel, keywords):
    """By brute force: a tap counts where shifting in ones changes the sum."""
    ones = jax.lax.conv_general_dilated(jnp.ones(image), jnp.ones(kernel), **keywords)
    text = jax.jit(lambda x, w: jax.lax.conv_general_dilated(x, w, **keywords)).lower(
        jnp.ones(image), jnp.ones(kernel)
    )
    line = next(
        line for line in text.as_text(dialect="hlo").splitlines() if " convolution(" in line
    )
    found = convolution_flops(
        line.partition(" convolution(")[2], lhs=image, rhs=kernel, out=ones.shape
    )
    # With ones everywhere each result is the number of its products.
    assert found == 2 * float(jnp.sum(ones))


def test_collectives_by_kind_group_and_bytes():
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))

    def on(*axes):
        return NamedSharding(mesh, P(*axes))

    x = zeros(16, 64)
    total = counted(
        lambda x: jnp.sum(x, axis=0), x, in_shardings=on(("a", "b")), out_shardings=on()
    )
    assert total.collectives == (Collective("all-reduce", 8, 1, 64 * 4),)
    gather = counted(lambda x: x * 2, x, in_shardings=on(None, "b"), out_shardings=on())
    assert gather.collectives == (Collective("all-gather", 4, 1, 16 * 64 * 4),)


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ("replica_groups={{0,1},{2,3}}, channel_id=1", 2),
        ("replica_groups=[2,4]<=[8], use_global_device_ids=true", 4),
        ("replica_groups=mesh['a'=16,'b'=2] {'a'}, dimensions={1}", 16),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}, channel_id=1", 4),
        ("source_target_pairs={{0,1},{1,0}}", 2),
        ("channel_id=3", 0),
    ],
)
def test_group_sizes_in_all_their_spellings(attributes, size):
    assert group_size(attributes) == size


def test_the_bound_is_the_slowest_of_three():
    chip = Chip(flops=100.0, hbm_bytes=1.0, hbm_bandwidth=10.0, link_bandwidth=5.0)
    reduce = Collective("all-reduce", 4, 1, 40)
    gather = Collective("all-gather", 0, 1, 40)  # of all eight
    bound = roofline(chip, flops=300, hbm_bytes=50, collectives=[reduce, gather], num_chips=8)
    assert bound.compute == 3
    assert bound.memory == 5
    assert bound.communication == pytest.approx(2 * 3 / 4 * 40 / 5 + 7 / 8 * 40 / 5)
    assert bound.limit == "communication"
    assert bound.seconds == bound.communication
    permute = Collective("collective-permute", 2, 1, 40)
    assert link_seconds([permute], num_chips=8, bandwidth=5.0) == 8


@pytest.mark.parametrize(
    ("model", "images", "expected"), [("b16", 64, 9.04e12), ("l14", 32, 20.77e12)]
)
def test_the_plain_count_is_the_published_one(model, images, expected):
    """Three or four digits were published; what they count beside the blocks was not."""
    spec = shapes.published_spec(model, image_size=224)
    assert images * plain_flops(spec, num_classes=1000) == pytest.approx(expected, rel=2e-3)


def test_the_plain_count_of_a_block_is_the_closed_form():
    spec = shapes.published_spec("b32", image_size=224)
    deeper = plain_flops(spec, num_classes=10)
    vision = spec.vision
    tokens, width = 50, 768
    block = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
    heads = 3 * 2 * 49 * (3 * 32**2) * width  # embedding: two passes forward, one back
    heads += 3 * 2 * 49 * width * (512 + 3 * 32**2)  # projection and decoder of patches
    heads += 4 * 2 * 512 * (width + 10)  # projection and classifier of images
    assert deeper == math.fsum([4 * vision.depth * block, heads])
