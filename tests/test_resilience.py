"""Runs as processes that are killed, and refused files and disk space: nothing is lost."""

import json
import os
import random
import resource
import shutil
import signal
import time

import kills
import pytest
import tiny_run
from commands import ROOT, finish, start, workers_of, write_config
from long_run import LONG, assert_same, begin, has_logged, wait_for

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


@pytest.fixture(scope="module")
def config(inputs):
    return write_config(inputs, **LONG)


def test_killed_at_any_moment_a_run_ends_with_the_same_bits(tmp_path):
    inputs = tiny_run.write_all(tmp_path / "inputs")
    config = kills.prepare(inputs)
    outcome = kills.kill_and_resume(
        inputs, config, inputs / "run", moments=["save", "evaluation"], rng=random.Random(0)
    )
    assert outcome.moments == ["save", "evaluation"]
    assert not outcome.differences


def test_workers_that_die_and_those_of_a_run_that_dies(config, tmp_path):
    workdir = tmp_path / "run"
    flags = ("--config.loader.num_workers=2", "--config.loader.num_threads=1")
    process = begin(config, workdir, *flags)
    wait_for(process, has_logged(workdir, 21))
    os.kill(workers_of(process)[0], signal.SIGKILL)
    code, _, stderr = finish(process)
    assert code == 75, stderr
    assert stderr.startswith("error: a process that makes batches"), stderr
    assert "ended with exit code -9" in stderr
    assert len(stderr.splitlines()) == 1, stderr
    process = begin(config, workdir, *flags)
    wait_for(process, lambda: len(workers_of(process)) == 2)
    workers = workers_of(process)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{pid}") for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def limit_file_size(process, size):
    """Every write beyond it fails, as on a full disk."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


# Found by its name by every Python that starts, of workers too.
AWAY = """
import errno, os
from must_jax.data import files, patience

def failing(works):
    def read(path, **keywords):
        if os.path.exists({mark!r}) and str(path).endswith(".png"):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
        return works(path, **keywords)
    return read

files.open_regular = patience.open_regular = failing(patience.open_regular)
patience._LOCAL_WAITS, patience._OUTAGE_WAIT, patience._OUTAGE_SECONDS = (0.1,), 0.1, {seconds}
"""


@pytest.mark.parametrize("num_workers", [0, 1])
def test_images_that_are_away_end_no_run_for_good(
    num_workers, config, undisturbed, tmp_path, monkeypatch
):
    """For too long, and then while it is asked to stop: it saves, and goes on bit for bit."""
    mark, workdir = tmp_path / "away", tmp_path / "run"
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    flags = (f"--config.loader.num_workers={num_workers}", "--config.loader.num_threads=1")

    def begin_with(seconds):
        (tmp_path / "sitecustomize.py").write_text(AWAY.format(mark=str(mark), seconds=seconds))
        return begin(config, workdir, *flags)

    process = begin_with(seconds=2)
    wait_for(process, has_logged(workdir, 21))
    mark.touch()
    code, stdout, stderr = finish(process)
    assert code == 75, stderr
    told, error = stderr.splitlines()
    assert "Stale file handle; reads that fail so are tried again" in told
    assert error.startswith("error: ")
    assert error.endswith("the same command goes on from the last checkpoint")
    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert saved >= 21
    mark.unlink()
    process = begin_with(seconds=1000)
    wait_for(process, has_logged(workdir, saved + 14 - saved % 7))
    mark.touch()
    time.sleep(3)  # batches that are there are soon used up
    process.send_signal(signal.SIGTERM)
    code, stdout, stderr = finish(process)
    assert code == 75, stderr
    assert f"at step {saved} of" in stdout
    assert stdout.splitlines()[-1].startswith("asked to stop: saved at step ")
    mark.unlink()
    code, _, stderr = finish(begin_with(seconds=1000))
    assert code == 0, stderr
    assert_same(workdir, undisturbed)


@pytest.mark.parametrize("gone", ["train", "test"])
def test_a_run_whose_images_are_gone_saves_before_it_ends(gone, config, undisturbed, tmp_path):
    """As when they were unmounted."""
    workdir = tmp_path / "run"
    images = shutil.copytree(config.parent / gone, tmp_path / gone)
    process = begin(config, workdir, f"--config.dataset.{gone}={images}")
    wait_for(process, has_logged(workdir, 21))
    images.rename(tmp_path / "elsewhere")
    images.mkdir()
    code, _, stderr = finish(process)
    assert code == 2
    assert len(stderr.splitlines()) == 1, stderr
    assert "decode" in stderr
    shutil.rmtree(images)
    (tmp_path / "elsewhere").rename(images)
    code, stdout, stderr = finish(begin(config, workdir, f"--config.dataset.{gone}={images}"))
    assert code == 0, stderr
    assert f"resuming {workdir} at step " in stdout
    assert_same(workdir, undisturbed)


def test_a_full_disk_stops_no_training_and_harms_no_checkpoint(config, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    process = begin(config, workdir)
    wait_for(process, has_logged(workdir, 84))  # the checkpoint of step 80 is begun
    wait_for(process, lambda: (workdir / "checkpoints" / "80").exists())
    limit_file_size(process, 100)
    code, stdout, stderr = finish(process)
    assert code == 2, (stdout, stderr)
    told = [line for line in stdout.splitlines() if "training goes on, that of step 80" in line]
    assert told, stdout
    assert "checkpoint of step 240 cannot be written" in stderr
    assert "goes on from step 80" in stderr
    assert len(stderr.splitlines()) == 1, stderr
    code, stdout, stderr = finish(begin(config, workdir))
    assert code == 0, stderr
    assert "at step 80 of 240" in stdout
    assert_same(workdir, undisturbed)


def test_a_disk_that_is_full_for_a_while_costs_nothing(config, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    process = begin(config, workdir)
    wait_for(process, has_logged(workdir, 21))
    limit_file_size(process, 20_000)  # room for log lines, and to begin a checkpoint
    wait_for(process, has_logged(workdir, 161))  # that of step 160 begins when that of 80 is done
    limit_file_size(process, resource.RLIM_INFINITY)
    code, stdout, stderr = finish(process)
    assert code == 0, stderr
    assert "checkpoint of step 80 was not written" in stdout
    assert_same(workdir, undisturbed)


def test_a_folder_that_is_away_for_a_while_costs_nothing(config, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    process = begin(config, workdir)
    wait_for(process, has_logged(workdir, 21))
    folder, parked = workdir / "checkpoints", tmp_path / "parked"
    folder.rename(parked)
    folder.write_text("not a folder")
    wait_for(process, has_logged(workdir, 91))  # the checkpoint of step 80 was to be begun
    folder.unlink()
    parked.rename(folder)
    began = time.monotonic()
    code, stdout, stderr = finish(process)
    assert code == 0, stderr
    assert time.monotonic() - began < 120  # the writer's threads would be waited for much longer
    assert "checkpoint of step 80 was not written: Not a directory" in stdout
    assert_same(workdir, undisturbed)


def test_a_workdir_that_turns_read_only_stops_no_training(config, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    process = begin(config, workdir, bound_by_modes=True)
    wait_for(process, has_logged(workdir, 84))
    wait_for(process, lambda: (workdir / "checkpoints" / "80" / "commit_success.txt").exists())
    modes = {path: path.stat().st_mode for path in [workdir, *workdir.rglob("*")]}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    code, stdout, stderr = finish(process)
    for path, mode in modes.items():
        path.chmod(mode)
    assert code == 2, (stdout, stderr)
    assert "training goes on" in stdout
    assert "step 240/240" in stdout
    assert "checkpoint of step 240 cannot be written" in stderr
    assert "goes on from step 80" in stderr
    assert len(stderr.splitlines()) == 1, stderr
    code, stdout, stderr = finish(begin(config, workdir))
    assert code == 0, stderr
    assert_same(workdir, undisturbed)


def test_a_checkpoint_that_may_not_be_read_is_not_passed_over(config, undisturbed, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    for name in ("state/manifest.ocdbt", "_CHECKPOINT_METADATA"):
        path = workdir / "checkpoints" / "240" / name
        path.chmod(0)
        code, _, stderr = finish(begin(config, workdir, bound_by_modes=True))
        assert code == 2, stderr
        assert stderr.startswith(f"error: {workdir}/checkpoints/240 cannot be read (Permission den")
        assert len(stderr.splitlines()) == 1, stderr
        path.chmod(0o644)
    assert (workdir / "checkpoints" / "240").is_dir()
    code, stdout, stderr = finish(begin(config, workdir))
    assert code == 0, stderr
    assert "at step 240 of 240" in stdout


def test_steps_that_are_not_finite_end_in_a_dump_that_is_replayed(inputs, tmp_path):
    """A rate that sends parameters to infinity: every step after the first is NaN.

    Images that stand in for others which do not decode are in the last of them twice.
    """
    train = tmp_path / "train"
    shutil.copytree(inputs / "train", train)
    for path in sorted(train.iterdir())[:12]:
        path.write_bytes(b"no image")
    config = write_config(
        inputs,
        learning_rate=1e38,
        max_nonfinite_steps=3,
        epochs=4,
        grad_accumulation=2,
        **{"dataset.train": str(train), "loader.max_failed_fraction": 0.5},
    )
    code, stdout, stderr = finish(begin(config, tmp_path / "run"))
    assert code == 2, (stdout, stderr)
    assert "3 steps in a row were not finite" in stderr
    assert len(stderr.splitlines()) == 1
    skipped = [line for line in stdout.splitlines() if " skipped: " in line]
    assert len(skipped) == 3
    assert ".png" in skipped[0]
    told = json.loads((tmp_path / "run" / "nonfinite" / "step.json").read_text())
    assert len(set(told["images"])) == len(told["images"]) < 8
    flags = ["--mode=replay", f"--workdir={tmp_path}/run"]
    code, stdout, stderr = finish(start(*flags, devices=1))
    assert code == 0, stderr
    assert "loss = nan" in stdout
    assert "largest entry of params" in stdout
    code, stdout, stderr = finish(start(*flags, "--disable_jit", devices=1))
    assert code == 0, stderr
    assert "the first value that is not finite comes from " in stdout
    assert "must_jax/models/vit.py" in stdout.splitlines()[-1]
