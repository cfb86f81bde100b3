"""Checkpoints that are damaged in any file, on any mesh; retention; saving that costs little."""

import dataclasses
import functools
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from damages import damaged_copies, emptied, flipped, removed, truncated, zeroed
from full_disks import files_up_to

from must_jax import sharding
from must_jax.checkpoint import complete_steps, restore_latest
from must_jax.checkpoint_writer import Checkpoints
from must_jax.errors import UserError
from must_jax.state import init_state, state_shapes

OPTIMIZER = optax.scale_by_adam()
NOTES = {"seconds": 12.5, "pending": [{"loss": 0.1}], "failed_records": [3]}


def make_state(step):
    rng = np.random.default_rng(step)
    params = {
        "blocks": {"fc1": {"kernel": rng.normal(size=(2, 64, 48)).astype(np.float32)}},
        "classifier": rng.normal(size=(16, 8)).astype(np.float32),
    }
    state = init_state(params, optimizer=OPTIMIZER)
    return dataclasses.replace(state, step=jnp.int32(step))


def on(mesh, state):
    return sharding.put(state, sharding.state_shardings(mesh, state))


def save(workdir, steps, *, to_keep=9, chosen=()):
    mesh = sharding.make_mesh(data=2, fsdp=4)
    checkpoints = Checkpoints(str(workdir), to_keep=to_keep, step=0)
    for step in steps:
        checkpoints.save(on(mesh, make_state(step)), step=step, notes=NOTES, chosen=chosen)
    assert checkpoints.finish() is None
    checkpoints.close()


def read(workdir, mesh):
    shapes = jax.eval_shape(functools.partial(make_state, 1))
    like = state_shapes(shapes.params, optimizer=OPTIMIZER)
    return restore_latest(str(workdir), like, shardings=sharding.state_shardings(mesh, like))


def assert_equal(state, expected):
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("written") / "run"
    save(workdir, [1, 2])
    return workdir


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_a_checkpoint_is_whole_on_any_mesh(written, sizes):
    mesh = sharding.make_mesh(data=sizes[0], fsdp=sizes[1], model=sizes[2])
    restored = read(written, mesh)
    assert (restored.step, restored.passed_over, restored.notes) == (2, [], NOTES)
    assert_equal(restored.state, make_state(2))


def test_damage_to_any_file_is_found_or_harmless(written, tmp_path):
    """Each file of the latest checkpoint in turn: never other numbers, never a traceback."""
    mesh = sharding.make_mesh()
    names = [p.relative_to(written) for p in written.glob("checkpoints/2/**/*") if p.is_file()]
    assert len(names) > 5
    passed_over = 0
    workdir = tmp_path / "run"
    damages = (truncated, emptied, flipped(0.5), zeroed, removed)
    for name, damage in damaged_copies(written, workdir, names, damages):
        restored = read(workdir, mesh)
        assert restored.step in (1, 2), (name, damage)
        assert restored.notes == NOTES, (name, damage)
        assert_equal(restored.state, make_state(restored.step))
        for reason in restored.passed_over:
            assert "checkpoints/2 is damaged (" in reason
        passed_over += restored.step == 1
    assert passed_over > len(names)


@pytest.mark.parametrize("odd", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_neither_read_nor_damage(written, tmp_path, odd):
    shutil.copytree(written, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "2" / "state" / "_METADATA"
    path.unlink()
    odd(path)
    with pytest.raises(UserError, match=f"^{path} must be a file, and is a link, a pipe or"):
        read(tmp_path / "run", sharding.make_mesh())


def test_what_is_not_whole_is_never_the_latest(written, tmp_path):
    shutil.copytree(written, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "run" / "checkpoints" / "4").mkdir()
    assert complete_steps(str(tmp_path / "run")) == [1, 2]


def test_the_state_of_another_model_is_refused(written):
    mesh = sharding.make_mesh()
    other = {
        "blocks": {"fc1": {"kernel": jnp.zeros((2, 64, 32))}},
        "classifier": jnp.zeros((16, 8)),
    }
    like = state_shapes(other, optimizer=OPTIMIZER)
    with pytest.raises(UserError, match="holds the state of another model"):
        restore_latest(str(written), like, shardings=sharding.state_shardings(mesh, like))


def test_the_last_ones_and_the_chosen_one_stay(tmp_path):
    save(tmp_path, [1, 2, 3, 4], to_keep=2, chosen=[1])
    assert complete_steps(str(tmp_path)) == [1, 3, 4]


def test_a_chosen_one_stays_while_the_better_one_can_not_be_written(tmp_path):
    save(tmp_path, [1, 2, 3, 4], to_keep=1, chosen=[9, 1, 2])
    assert complete_steps(str(tmp_path)) == [1, 4]


def test_other_notes_take_the_place_of_those_of_a_whole_checkpoint(tmp_path):
    save(tmp_path, [1])
    mesh = sharding.make_mesh()
    state = on(mesh, make_state(1))
    checkpoints = Checkpoints(str(tmp_path), to_keep=9, step=1)
    with files_up_to(10):
        told = checkpoints.renew_notes(state, step=1, notes={"seconds": 99})
    assert told == "File too large"
    assert read(tmp_path, mesh).notes == NOTES
    assert checkpoints.renew_notes(state, step=1, notes={"seconds": 99}) is None
    checkpoints.close()
    restored = read(tmp_path, mesh)
    assert restored.notes == {"seconds": 99}
    assert_equal(restored.state, make_state(1))


def test_a_folder_that_was_away_takes_the_next_checkpoint(tmp_path):
    mesh = sharding.make_mesh()
    checkpoints = Checkpoints(str(tmp_path), to_keep=9, step=0)
    folder = tmp_path / "checkpoints"
    folder.rmdir()
    folder.write_text("")
    for step in (1, 2):  # the second finds no writer any more
        checkpoints.save(on(mesh, make_state(step)), step=step, notes=NOTES)
        assert checkpoints.has_failed()
        assert checkpoints.finish() == "Not a directory"
    folder.unlink()
    folder.mkdir()
    checkpoints.save(on(mesh, make_state(3)), step=3, notes=NOTES)
    assert checkpoints.finish() is None
    checkpoints.close()
    assert [path.name for path in folder.iterdir()] == ["3"]
    assert_equal(read(tmp_path, mesh).state, make_state(3))
