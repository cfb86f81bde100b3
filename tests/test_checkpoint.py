"""Checkpoints that are damaged in any file, read on any mesh."""

import os
import shutil

import jax.numpy as jnp
import pytest
from damages import damaged_copies, emptied, flipped, removed, truncated, zeroed
from little_states import NOTES, OPTIMIZER, assert_equal, make_state, read, save

from must_jax import sharding
from must_jax.checkpoint import complete_steps, found_steps, restore_latest
from must_jax.errors import UserError
from must_jax.state import state_shapes


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
    restored = read(tmp_path / "run", sharding.make_mesh())
    assert restored.step == 2
    assert restored.passed_over == [
        f"{tmp_path}/run/checkpoints/4 is damaged (it has no _CHECKPOINT_METADATA)"
    ]


def test_checkpoints_that_all_lost_their_marks_are_not_taken_for_none(written, tmp_path):
    """As a copy of a part of a workdir has them."""
    shutil.copytree(written, tmp_path / "run")
    for mark in (tmp_path / "run" / "checkpoints").glob("*/_CHECKPOINT_METADATA"):
        mark.unlink()
    assert found_steps(str(tmp_path / "run")) == [(1, False), (2, False)]
    with pytest.raises(UserError, match=r"/2 is damaged \(it has no _CHECK.* use another workdir"):
        read(tmp_path / "run", sharding.make_mesh())


def test_the_state_of_another_model_is_refused(written):
    mesh = sharding.make_mesh()
    other = {
        "blocks": {"fc1": {"kernel": jnp.zeros((2, 64, 32))}},
        "classifier": jnp.zeros((16, 8)),
    }
    like = state_shapes(other, optimizer=OPTIMIZER)
    with pytest.raises(UserError, match="holds the state of another model"):
        restore_latest(str(written), like, shardings=sharding.state_shardings(mesh, like))
