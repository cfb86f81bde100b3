"""What a checkpoint remembers of log lines, where disks fill and the power is cut."""

import json
import os
import sys

import jax.numpy as jnp
import pytest
from full_disks import Synced, files_up_to

from must_jax.errors import flush_output
from must_jax.metrics import MetricWriter
from must_jax.progress import Progress, say
from must_jax.run_notes import LINE, RunNotes
from must_jax.telemetry import Telemetry

# What is printed would go to a file that is as full.
pytestmark = pytest.mark.usefixtures("capsys")


def lines_of(tmp_path):
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def steps_of(tmp_path):
    return [line["step"] for line in lines_of(tmp_path)]


def progress(writer, *, pending=(), first_step=0):
    telemetry = Telemetry(batch_size=8, flops_per_image=1.0, num_threads=1, num_workers=0)
    return Progress(
        writer,
        telemetry,
        first_step=first_step,
        num_steps=60,
        steps_per_epoch=30,
        log_every_steps=10,
        eval_metric="top1",
        pending=list(pending),
    )


def do_steps(done, steps):
    names = ("loss", "loss_self_train", "loss_fair", "loss_mim", "loss_align")
    for step in steps:
        values = dict.fromkeys((*names, "confident_fraction", "learning_rate", "ema_decay"), step)
        arrays = {name: jnp.float32(value) for name, value in values.items()}
        done.step(step, arrays | {"is_finite": jnp.bool_(True)})


def test_lines_that_were_refused_before_a_checkpoint_outlive_a_kill(tmp_path):
    """Full from step 20 to the checkpoint of step 25; all that was in memory is gone then."""
    first = progress(MetricWriter(str(tmp_path), step=0))
    do_steps(first, range(1, 16))
    with files_up_to(10):
        do_steps(first, range(16, 26))
        notes = RunNotes(facts={}, pending=first.pending())
    assert [LINE in one for one in notes.pending] == [True, *[False] * 5]
    assert steps_of(tmp_path) == [10]
    read = RunNotes.from_json(json.loads(json.dumps(notes.json())), path="")
    for _ in range(2):  # the second time, the file has the line already
        writer = MetricWriter(str(tmp_path), step=25)
        again = progress(writer, pending=read.pending, first_step=25)
        assert steps_of(tmp_path) == [10, 20]
        do_steps(again, range(26, 31))
        assert again.pending() == []
        writer.close()
        assert steps_of(tmp_path) == [10, 20, 30]
        losses = [line["train/loss"] for line in lines_of(tmp_path)]
        assert losses == [5.5, 15.5, 25.5]


def test_lines_that_a_disk_takes_again_are_written_before_a_checkpoint(tmp_path):
    watched = progress(MetricWriter(str(tmp_path), step=0))
    do_steps(watched, range(1, 11))
    with files_up_to(10):
        do_steps(watched, range(11, 23))
    assert steps_of(tmp_path) == [10]
    assert [one["loss"] for one in watched.pending()] == [21.0, 22.0]
    assert steps_of(tmp_path) == [10, 20]


def test_a_power_cut_takes_no_line_that_a_checkpoint_builds_on(tmp_path, monkeypatch):
    synced = Synced()
    monkeypatch.setattr(os, "fsync", synced)
    path = tmp_path / "metrics.jsonl"
    watched = progress(MetricWriter(str(tmp_path), step=0))
    do_steps(watched, range(1, 26))
    assert synced.left_of(path) == b""
    watched.pending()
    assert synced.left_of(path) == path.read_bytes()
    assert steps_of(tmp_path) == [10, 20]
    MetricWriter(str(tmp_path), step=25).close()  # writes the file anew
    assert synced.left_of(path) == path.read_bytes()
    assert steps_of(tmp_path) == [10, 20]


def test_a_terminal_that_is_a_file_on_a_full_disk_ends_no_run(tmp_path, monkeypatch):
    with (tmp_path / "log.txt").open("w") as log:
        monkeypatch.setattr(sys, "stdout", log)
        say("step 1")
        with files_up_to(7):
            say("step 2")
        say("step 3")
    assert (tmp_path / "log.txt").read_text() == "step 1\nstep 2\nstep 3\n"


def test_a_reader_of_the_output_that_is_gone_ends_no_run(monkeypatch):
    """As of `| tee log` when tee is killed."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", pipe)
        say("step 1")
        flush_output()  # or what is left fails as the pipe is closed
