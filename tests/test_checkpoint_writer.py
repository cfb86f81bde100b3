"""What writes checkpoints: which stay, and what a disk, an old checkpoint or a stranger refuses."""

import errno
import json
import os

import pytest
from full_disks import files_up_to
from jax.experimental import multihost_utils
from little_states import NOTES, assert_equal, make_state, on, read, save
from orbax.checkpoint._src.path import deleter

from must_jax import sharding
from must_jax.checkpoint import COMPLETE, complete_steps
from must_jax.checkpoint_writer import Checkpoints
from must_jax.errors import UserError


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


def test_an_old_checkpoint_that_can_not_be_removed_fails_no_new_one(tmp_path, monkeypatch, capsys):
    def refuse(self, path):
        raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))

    monkeypatch.setattr(deleter.PathDeleter, "delete", refuse)
    save(tmp_path, [1, 2, 3], to_keep=1)
    assert complete_steps(str(tmp_path)) == [1, 2, 3]
    told = capsys.readouterr().out.splitlines()
    assert [line.partition(",")[0] for line in told] == [
        f"the checkpoint of step {step}" for step in (1, 2)
    ]
    assert all("could not be removed (Permission denied)" in line for line in told)
    monkeypatch.undo()
    checkpoints = Checkpoints(str(tmp_path), to_keep=1, step=3)
    mesh = sharding.make_mesh()
    checkpoints.save(on(mesh, make_state(4)), step=4, notes=NOTES)
    assert checkpoints.finish() is None
    checkpoints.close()
    assert complete_steps(str(tmp_path)) == [4]


def test_a_run_alone_asks_the_service_when_to_stop(tmp_path, monkeypatch):
    """It keeps the last number that it was asked for, and a run counts otherwise than orbax."""
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
    save(tmp_path, [1, 2])
    assert not asked


def test_an_end_by_the_second_interrupt_waits_for_no_checkpoint(tmp_path):
    class Endless:
        def result(self, timeout=None):
            raise AssertionError

    writer = Checkpoints(str(tmp_path), to_keep=1, step=0)
    writer._pending = Endless()
    writer.__exit__(KeyboardInterrupt)


def test_what_a_stranger_left_in_the_place_of_the_first_write_is_not_written_through(tmp_path):
    (tmp_path / "victim").write_text("precious")
    checkpoints = Checkpoints(str(tmp_path), to_keep=1, step=0)
    (tmp_path / "checkpoints" / "probe-0").symlink_to(tmp_path / "victim")
    checkpoints.save(on(sharding.make_mesh(), make_state(1)), step=1, notes=NOTES)
    assert checkpoints.finish() is None
    checkpoints.close()
    assert (tmp_path / "victim").read_text() == "precious"
    assert complete_steps(str(tmp_path)) == [1]


@pytest.mark.parametrize("told", [[], {"init_timestamp_nsecs": "x"}, {"item_handlers": 5}])
def test_a_forged_mark_of_an_older_checkpoint_is_one_line(tmp_path, told):
    save(tmp_path, [1, 2])
    (tmp_path / "checkpoints" / "1" / COMPLETE).write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"checkpoints can't be opened \(.*\); where it holds"):
        Checkpoints(str(tmp_path), to_keep=9, step=2)
