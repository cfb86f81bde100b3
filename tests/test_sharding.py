"""The mesh, and what its axes split; tests/test_processes.py has whole runs on it."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from jax.sharding import PartitionSpec

from must_jax import sharding
from must_jax.compile import jit_train_step
from must_jax.errors import UserError
from must_jax.experiment import build
from must_jax.models import VisionSpec, VisionTransformer
from must_jax.optimizer import make_optimizer
from must_jax.state import init_params, state_shapes

VIT_B16 = VisionSpec(
    image_size=224,
    patch_size=16,
    width=768,
    depth=12,
    num_heads=12,
    mlp_dim=3072,
    activation="quick_gelu",
    layer_norm_eps=1e-5,
)


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """As much of a device as placing it reads."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


def fake_devices(*, slices, of_each, processes=1):
    count = slices * of_each
    return [FakeDevice(i, i * processes // count, i // of_each) for i in range(count)]


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((1, -1, 1), (1, 8, 1)),
        ((2, 2, -1), (2, 2, 2)),
        ((4, 2, 1), (4, 2, 1)),
    ],
)
def test_one_size_is_what_the_others_leave(sizes, shape):
    mesh = sharding.make_mesh(data=sizes[0], fsdp=sizes[1], model=sizes[2])
    assert tuple(mesh.shape.values()) == shape
    assert list(mesh.shape) == ["data", "fsdp", "model"]
    assert sorted(device.id for device in mesh.devices.flat) == list(range(8))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((-1, -1, 1), "-1 for one of them"),
        ((0, 1, 1), "must be positive"),
        ((-1, 3, 1), r"fsdp=3.* 8 device\(s\) don't make up"),
        ((4, 1, 1), "data=4"),
        ((16, 1, 1), "data=16"),
    ],
)
def test_sizes_that_do_not_make_up_the_devices_are_refused(sizes, message):
    with pytest.raises(UserError, match=message):
        sharding.make_mesh(data=sizes[0], fsdp=sizes[1], model=sizes[2])


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((-1, 4, 1), (2, 4, 1)),
        ((1, 8, 1), (1, 8, 1)),
        ((1, 4, 2), (1, 4, 2)),
    ],
)
def test_slices_lie_along_the_outermost_axis_that_they_divide(sizes, shape):
    devices = fake_devices(slices=2, of_each=4)
    mesh = sharding.make_mesh(data=sizes[0], fsdp=sizes[1], model=sizes[2], devices=devices)
    assert mesh.devices.shape == shape
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    outermost = next(axis for axis, size in enumerate(shape) if size > 1)
    # Crossing from one slice to the other happens along that axis alone, and once.
    np.testing.assert_array_equal(np.sort(slices, axis=outermost), slices)
    for axis in range(3):
        crossings = np.abs(np.diff(slices, axis=axis)).sum()
        assert crossings == (8 // shape[axis] if axis == outermost else 0)


@pytest.mark.parametrize(
    ("sizes", "processes", "expected"),
    [
        ((8, 1, 1), 4, [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ((2, 2, 2), 2, [(0, 2), (1, 2)]),
        ((1, 2, 4), 4, [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ((1, 1, 8), 2, [(0, 1), (0, 1)]),
    ],
)
def test_processes_of_the_same_rows_read_the_same_part(sizes, processes, expected, monkeypatch):
    devices = fake_devices(slices=1, of_each=8, processes=processes)
    mesh = sharding.make_mesh(data=sizes[0], fsdp=sizes[1], model=sizes[2], devices=devices)
    for process, part in enumerate(expected):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert sharding.process_rows(mesh) == part


def test_a_model_axis_that_cuts_across_processes_is_refused():
    devices = fake_devices(slices=1, of_each=6, processes=3)
    mesh = sharding.make_mesh(data=2, fsdp=1, model=3, devices=devices)
    with pytest.raises(UserError, match=r"mesh\.model is 3, which cuts across"):
        sharding.process_rows(mesh)


def vit_b16_state():
    model = VisionTransformer(VIT_B16, 512, num_classes=1000)
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    optimizer = make_optimizer(params, schedule=lambda _: 1e-4, weight_decay=0.05, layer_decay=0.65)
    return state_shapes(params, optimizer=optimizer)


def bytes_a_device(shapes, shardings):
    leaves = zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
    return sum(math.prod(s.shard_shape(a.shape)) * a.dtype.itemsize for a, s in leaves)


@pytest.mark.parametrize("parts", [2, 8, 64])
def test_fsdp_divides_the_state_of_a_vit_b16_by_its_size(parts):
    shapes = vit_b16_state()
    total = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(shapes))
    devices = fake_devices(slices=1, of_each=parts)
    mesh = sharding.make_mesh(data=1, fsdp=parts, devices=devices)
    ours = bytes_a_device(shapes, sharding.state_shardings(mesh, shapes))
    # Vectors stay whole: 0.16 % of the state.
    assert total / parts <= ours <= total / parts + 0.0017 * total


def test_the_model_axis_splits_heads_and_hidden_units():
    mesh = sharding.make_mesh(data=1, fsdp=2, model=4)
    shardings = sharding.state_shardings(mesh, vit_b16_state())
    for params in (shardings.params, shardings.teacher_params, shardings.opt_state[0].mu):
        block = params["blocks"]
        assert block["attn"]["qkv"]["kernel"].spec == PartitionSpec(
            None, "fsdp", None, "model", None
        )
        assert block["attn"]["out"]["kernel"].spec == PartitionSpec(None, "model", None, "fsdp")
        assert block["mlp"]["fc1"]["kernel"].spec == PartitionSpec(None, "fsdp", "model")
        assert block["mlp"]["fc2"]["kernel"].spec == PartitionSpec(None, "model", "fsdp")
        assert block["ln_1"]["scale"].spec == PartitionSpec(None, None)


def config_of(inputs, sizes):
    config = tiny_run.config(inputs)
    config.mesh.data, config.mesh.fsdp, config.mesh.model = sizes
    return config


def compiled_step(inputs, sizes):
    experiment = build(config_of(inputs, sizes))
    # The last layer runs behind the loops; one of a single turn would be none.
    spec = experiment.spec
    vision = dataclasses.replace(spec.vision, depth=4)
    experiment = dataclasses.replace(experiment, spec=dataclasses.replace(spec, vision=vision))
    mesh = experiment.make_mesh()
    shapes = experiment.student_shapes()
    keywords = experiment.step_keywords(shapes, steps_per_epoch=4)
    state = state_shapes(shapes, optimizer=keywords["optimizer"])
    vision = experiment.spec.vision
    image = jax.ShapeDtypeStruct((8, vision.image_size, vision.image_size, 3), jnp.uint8)
    batch = {
        "image_weak": image,
        "image_strong": image,
        "patch_mask": jax.ShapeDtypeStruct((8, vision.num_patches), bool),
    }
    compiled = jit_train_step(mesh, shapes, **keywords).lower(state, batch).compile()
    return compiled, bytes_a_device(state, sharding.state_shardings(mesh, state))


def collectives(text):
    """(inside a loop's body?, kind, shapes) of every collective in an optimised program."""
    bodies = set(re.findall(r"body=%?([\w.\-]+)", text))
    computation, found = "", []
    for line in text.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            computation = head[1]
        match = re.search(r"= (.*?) (all-gather|all-reduce|all-to-all|reduce-scatter)\(", line)
        if match:
            shapes = [
                tuple(map(int, s.split(","))) for s in re.findall(r"\w+\[([\d,]+)\]", match[1])
            ]
            found.append((computation in bodies, match[2], shapes))
    return found


def test_fsdp_gathers_one_layer_at_a_time_in_all_three_loops(inputs):
    compiled, state_bytes = compiled_step(inputs, (1, 8, 1))
    found = collectives(compiled.as_text())
    gathers = [shapes for in_loop, kind, shapes in found if in_loop and kind == "all-gather"]
    # qkv, out, fc1 and fc2 of the teacher, of the student, and of the student's backward pass.
    assert len(gathers) == 12
    layer = {32 * 3 * 32, 32 * 32, 32 * 64}
    assert {math.prod(shape) for shapes in gathers for shape in shapes} == layer
    # No activation moves, and no stack of layers.
    assert not any(kind == "all-to-all" for _, kind, _ in found)
    for _, kind, shapes in found:
        if kind == "all-gather":
            assert all(math.prod(shape) <= 32 * 3 * 2 * 16 for shape in shapes)
    memory = compiled.memory_analysis()
    batch_bytes = 2 * 16 * 16 * 3 + 16
    assert memory.argument_size_in_bytes == pytest.approx(state_bytes + batch_bytes, rel=0.01)


def test_data_parallel_reduces_gradients_and_gathers_nothing(inputs):
    compiled, _ = compiled_step(inputs, (8, 1, 1))
    assert {kind for _, kind, _ in collectives(compiled.as_text())} == {"all-reduce"}
