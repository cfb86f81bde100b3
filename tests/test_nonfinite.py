"""The dump of a step that was not finite: where it can't be written, and where it is damaged."""

import dataclasses
import functools
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_run
from damages import damaged_copies, emptied, flipped, removed, truncated, zeroed
from full_disks import files_up_to

from must_jax import sharding
from must_jax.convert import zip_directory
from must_jax.errors import UserError
from must_jax.nonfinite import NonFiniteSteps, find_dump, read_dump
from must_jax.replay import replay
from must_jax.state import init_state, state_shapes

OPTIMIZER = optax.scale_by_adam()
DIAGNOSIS = "2 steps in a row were not finite, up to step 7 (loss): lower config.learning_rate"

# What is printed would go to a file that is as full.
pytestmark = pytest.mark.usefixtures("capsys")


class Names:
    def name_of(self, record):
        return f"{record}.png"


def make_params():
    rng = np.random.default_rng(0)
    return {
        "blocks": {"fc1": {"kernel": rng.normal(size=(2, 64, 48)).astype(np.float32)}},
        "classifier": rng.normal(size=(16, 8)).astype(np.float32),
    }


def make_state(step):
    state = init_state(make_params(), optimizer=OPTIMIZER)
    return dataclasses.replace(state, step=jnp.int32(step))


def make_batch():
    rng = np.random.default_rng(1)
    return {
        "image_weak": rng.integers(0, 256, (8, 96, 96, 3), np.uint8),
        "patch_mask": rng.random((8, 16)) < 0.5,
    }


def end_at_step_7(workdir):
    """What a run says whose steps 6 and 7 are not finite."""
    mesh = sharding.make_mesh(data=2, fsdp=4)
    state = make_state(7)
    state = sharding.put(state, sharding.state_shardings(mesh, state))
    watch = NonFiniteSteps(
        Names(), workdir=str(workdir), steps_per_epoch=4, limit=2, count=1, in_a_row=1
    )
    metrics = {"is_finite": jnp.bool_(False), "loss": jnp.float32(jnp.nan)}
    with pytest.raises(UserError) as caught:
        watch.note(
            7,
            metrics,
            batch=sharding.to_mesh(make_batch(), mesh),
            records=np.arange(8),
            state=state,
        )
    return str(caught.value)


def read(workdir, *, params=make_params):
    mesh = sharding.make_mesh()
    shapes = jax.eval_shape(functools.partial(params))
    like = state_shapes(shapes, optimizer=OPTIMIZER)
    shardings = sharding.state_shardings(mesh, like)
    return read_dump(find_dump(str(workdir)), like, shardings=shardings)


def assert_dump_of_step_7(workdir):
    state, batch, told = read(workdir)
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(make_state(6)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert set(batch) == set(make_batch())
    for name, array in make_batch().items():
        np.testing.assert_array_equal(batch[name], array)
    assert (told["step"], told["steps_per_epoch"]) == (7, 4)
    assert told["images"] == [f"{n}.png" for n in range(8)]


@pytest.fixture(scope="module")
def dumped(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("dumped") / "run"
    workdir.mkdir()
    assert end_at_step_7(workdir) == (
        f"{DIAGNOSIS}, or look for what is wrong with --mode=replay --disable_jit, which repeats "
        f"that step from {workdir}/nonfinite"
    )
    return workdir


def test_a_dump_is_read_as_it_was_written(dumped):
    assert os.listdir(dumped) == ["nonfinite"]
    assert_dump_of_step_7(dumped)
    told = json.loads((dumped / "nonfinite" / "step.json").read_text())
    assert told["metrics"] == {"is_finite": "0.0", "loss": "nan"}


def test_a_dump_takes_the_place_of_the_one_before(dumped, tmp_path):
    (tmp_path / "nonfinite" / "checkpoints" / "99").mkdir(parents=True)
    (tmp_path / "nonfinite.tmp").mkdir()  # as a kill leaves it
    (tmp_path / "nonfinite.tmp" / "part").write_text("")
    end_at_step_7(tmp_path)
    assert os.listdir(tmp_path) == ["nonfinite"]
    files = [
        sorted(p.relative_to(w) for p in w.glob("nonfinite/*") if p.is_file())
        for w in (dumped, tmp_path)
    ]
    assert files[0] == files[1]
    assert_dump_of_step_7(tmp_path)


@pytest.mark.parametrize("name", ["nonfinite", "nonfinite.tmp", "nonfinite.old"])
def test_links_in_the_place_of_a_dump_are_replaced_and_not_followed(name, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").write_text("mine")
    workdir = tmp_path / "run"
    workdir.mkdir()
    if name == "nonfinite.old":
        (workdir / "nonfinite").mkdir()
    (workdir / name).symlink_to(tmp_path / "elsewhere")
    end_at_step_7(workdir)
    assert os.listdir(tmp_path / "elsewhere") == ["mine"]
    assert os.listdir(workdir) == ["nonfinite"]
    assert not (workdir / "nonfinite").is_symlink()
    assert_dump_of_step_7(workdir)


@pytest.mark.parametrize("size", [100, 150_000])
def test_a_full_disk_does_not_hide_the_diagnosis(dumped, tmp_path, size):
    """Nor harm the dump from before; of the second size, all but the batch can be written."""
    larger = [p.name for p in dumped.rglob("*") if p.is_file() and p.stat().st_size > 150_000]
    assert larger == ["batch.npz"]
    shutil.copytree(dumped, tmp_path, dirs_exist_ok=True)
    with files_up_to(size):
        told = end_at_step_7(tmp_path)
    assert told.startswith(f"{DIAGNOSIS}; and the dump could not be written (")
    assert "File too large" in told
    assert told.endswith(
        f"): when that is mended, the same command leaves that step in {tmp_path}/nonfinite"
    )
    assert os.listdir(tmp_path) == ["nonfinite"]
    assert_dump_of_step_7(tmp_path)


def test_what_is_in_the_way_does_not_hide_the_diagnosis(tmp_path):
    for name in ("nonfinite", "nonfinite.tmp"):
        workdir = tmp_path / name
        workdir.mkdir()
        (workdir / name).write_text("mine")
        told = end_at_step_7(workdir)
        assert told.startswith(f"{DIAGNOSIS}; and the dump could not be written (")
        assert "Not a directory" in told
        assert os.listdir(workdir) == [name]
        assert (workdir / name).read_text() == "mine"


def no_json(data):
    return b'["step"]'


def refusal(workdir):
    try:
        read(workdir)
    except UserError as error:
        return str(error)
    return None


DAMAGES = (truncated, emptied, zeroed, no_json, removed, *(flipped(n / 3) for n in range(4)))


@pytest.mark.slow
def test_damage_to_any_file_of_a_dump_is_found_or_harmless(dumped, tmp_path):
    """Never other numbers, never a traceback."""
    names = [p.relative_to(dumped) for p in dumped.glob("nonfinite/**/*") if p.is_file()]
    assert len(names) > 6
    refused = dict.fromkeys(names, 0)
    workdir = tmp_path / "run"
    for name, damage in damaged_copies(dumped, workdir, names, DAMAGES):
        told = refusal(workdir)
        if told is None:
            assert_dump_of_step_7(workdir)
        else:
            assert told.startswith("that step can't be repeated: "), (name, damage)
            assert str(workdir) in told
            refused[name] += 1
    of_batch = next(name for name in names if name.name == "batch.npz")
    assert refused[of_batch] == len(DAMAGES) - 1  # the last byte is of an empty comment's length
    assert sum(map(bool, refused.values())) > 4


def test_a_batch_that_lacks_an_array_is_no_batch(dumped, tmp_path):
    for arrays in (
        {"image_weak": make_batch()["image_weak"]},
        make_batch() | {"patch_mask": np.zeros((8, 17), bool)},
        make_batch() | {"patch_mask": np.zeros((8, 16), np.int8)},
    ):
        shutil.copytree(dumped, tmp_path, dirs_exist_ok=True)
        np.savez(tmp_path / "nonfinite" / "batch.npz", **arrays)
        with pytest.raises(UserError, match=r"batch\.npz is not what was saved"):
            read(tmp_path)


def test_a_batch_that_unpacks_or_waits_is_damage(dumped, tmp_path):
    path = tmp_path / "nonfinite" / "batch.npz"
    zeros = {name: np.zeros((8, 4096, 4096), np.uint8) for name in make_batch()}
    for lay in (lambda: np.savez_compressed(path, **zeros), lambda: os.mkfifo(path)):
        shutil.copytree(dumped, tmp_path, dirs_exist_ok=True)
        path.unlink()
        lay()
        with pytest.raises(UserError, match=r"batch\.npz (is damaged|cannot be read)"):
            read(tmp_path)


def test_a_batch_of_many_arrays_is_damage(dumped, monkeypatch):
    monkeypatch.setattr(zip_directory, "MAX_ENTRIES", 1)
    with pytest.raises(UserError, match=r"batch\.npz is damaged"):
        read(dumped)


def test_a_dump_of_another_model_is_refused(dumped):
    def other():
        return make_params() | {"classifier": np.zeros((16, 9), np.float32)}

    with pytest.raises(UserError, match="holds the state of another model"):
        read(dumped, params=other)


@pytest.mark.slow
def test_a_replay_without_a_dump_or_of_another_model_is_refused(dumped, tmp_path):
    config = tiny_run.config(tiny_run.write_all(tmp_path / "inputs"))
    with pytest.raises(UserError, match="nonfinite does not exist; a run leaves it when"):
        replay(config, str(tmp_path))
    with pytest.raises(UserError, match=r"that step can't be repeated: .* another model"):
        replay(config, str(dumped))
