"""Metric files across resumes."""

import contextlib
import errno
import json
import os

import pytest
from full_disks import Synced, files_up_to

from must_jax.errors import UserError
from must_jax.metrics import MetricWriter, write_json


def steps_of(tmp_path):
    return [line["step"] for line in lines_of(tmp_path)]


def lines_of(tmp_path):
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_every_step_is_told_once_across_a_resume(tmp_path):
    writer = MetricWriter(str(tmp_path), step=0)
    for step in (2, 4, 6):
        writer.write(step, {"train/loss": float(step)})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "train/lo')  # as a kill leaves it
    writer = MetricWriter(str(tmp_path), step=4)
    writer.write(6, {"train/loss": 60.0})
    writer.close()
    assert lines_of(tmp_path) == [
        {"step": 2, "train/loss": 2.0},
        {"step": 4, "train/loss": 4.0},
        {"step": 6, "train/loss": 60.0},
    ]
    assert not (tmp_path / "metrics.jsonl.tmp").exists()


def test_an_evaluation_that_is_done_again_is_told_once(tmp_path):
    """A stop in its midst saves the step, and a kill after it goes back there."""
    for _ in range(2):
        with contextlib.closing(MetricWriter(str(tmp_path), step=4)) as writer:
            writer.write(4, {"eval/teacher_top1": 0.5, "quality/consensus": 1.0})
            writer.write(4, {"train/loss": 1.0})
            writer.write(5, {"train/loss": 1.0})
    assert steps_of(tmp_path) == [4, 4, 5]


def test_files_are_json_that_any_reader_takes_also_of_a_run_that_diverged(tmp_path):
    values = {"quality/teacher_information": float("nan"), "train/loss": float("inf"), "one": 1.0}
    told = dict.fromkeys(list(values)[:2]) | {"one": 1.0}
    with contextlib.closing(MetricWriter(str(tmp_path), step=0)) as writer:
        writer.write(2, values)
    write_json(tmp_path / "result.json", {"epochs": [(1, values)], "step": 2})

    def refuse(name):
        raise AssertionError(name)  # what Python takes for numbers and the standard does not

    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=refuse) == {"step": 2} | told
    text = (tmp_path / "result.json").read_text()
    assert json.loads(text, parse_constant=refuse) == {"epochs": [[1, told]], "step": 2}


def test_a_result_that_cannot_be_written(tmp_path):
    (tmp_path / "eval.json").mkdir()
    for path in (tmp_path / "eval.json", tmp_path / "nowhere" / "eval.json"):
        with pytest.raises(UserError, match=r"eval\.json cannot be written"):
            write_json(path, {})


def test_tensorboard_has_the_same_scalars(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    writer = MetricWriter(str(tmp_path), step=0)
    writer.write(2, {"train/loss": 1.5, "train/confident_fraction": 0.25})
    writer.close()
    writer = MetricWriter(str(tmp_path), step=1)
    writer.write(2, {"train/loss": 2.5})
    writer.close()
    found = []
    for path in sorted((tmp_path / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:  # length, its checksum, the event, its checksum
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            if event.HasField("session_log"):
                found.append((event.step, "start"))
    assert found == [
        (1, "start"),
        (2, "train/loss", 1.5),
        (2, "train/confident_fraction", 0.25),
        (2, "start"),
        (2, "train/loss", 2.5),
    ]


def test_lines_that_a_full_disk_refuses_are_told_once_and_written_later(tmp_path, capsys):
    writer = MetricWriter(str(tmp_path), step=0)
    writer.write(1, {"train/loss": 1.0})
    with files_up_to(40):  # in the midst of the second line
        for step in (2, 3):
            writer.write(step, {"train/loss": float(step)})
    assert lines_of(tmp_path) == [{"step": 1, "train/loss": 1.0}]
    assert capsys.readouterr().out == (
        f"{tmp_path}/metrics.jsonl cannot be written (File too large); training goes on, and log "
        "lines are kept until it can\n"
    )
    writer.write(4, {"train/loss": 4.0})
    writer.close()
    assert steps_of(tmp_path) == [1, 2, 3, 4]
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([2], "step 2"),
        ([2, 3, 3], "steps 2, 3"),
        (range(2, 12), "10 steps: 2, 3, 4, 5, 6, 7, 8, and on to 11"),
    ],
)
def test_lines_that_are_missing_at_the_end_are_told(tmp_path, capsys, steps, told):
    writer = MetricWriter(str(tmp_path), step=0)
    writer.write(1, {"train/loss": 1.0})
    with files_up_to(40):
        for step in steps:
            writer.write(step, {"train/loss": float(step)})
        capsys.readouterr()
        writer.close()
    assert capsys.readouterr().out == (
        f"{tmp_path}/metrics.jsonl lacks the log lines of {told} (File too large); mend that, and "
        "the same command adds them\n"
    )
    assert steps_of(tmp_path) == [1]


def test_a_power_cut_leaves_a_result_whole(tmp_path, monkeypatch):
    synced = Synced()
    monkeypatch.setattr(os, "fsync", synced)
    path = tmp_path / "result.json"
    write_json(path, {"steps": 1})
    assert synced.left_of(path) == path.read_bytes()
    assert json.loads(path.read_text()) == {"steps": 1}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EINVAL])
def test_lines_that_are_written_but_do_not_reach_the_disk(tmp_path, monkeypatch, capsys, number):
    """As on a network's file system that is full; some systems know no such call at all."""
    writer = MetricWriter(str(tmp_path), step=0)
    writer.write(1, {"train/loss": 1.0})
    assert writer.sync() == []
    writer.write(2, {"train/loss": 2.0})

    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        refused = writer.sync()
    told = capsys.readouterr().out
    if number == errno.EINVAL:
        assert (refused, told) == ([], "")
    else:
        assert refused == ['{"step": 2, "train/loss": 2.0}']
        assert "cannot be written (No space left on device)" in told
        assert steps_of(tmp_path) == [1]
    writer.write(3, {"train/loss": 3.0})
    writer.close()
    assert steps_of(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe\x00",
        b'{"step": "2"}',
        b'{"step": null}',
        b'{"step": NaN}',
        b'{"step": 1',
        b"[1]",
        b"[" * 100_000,
        b'{"step": ' + b"9" * 5000 + b"}",
        b"\0" * 4096,
    ],
)
def test_lines_that_are_none_are_dropped(tmp_path, line):
    good = b'{"step": 1, "train/loss": 1.0}\n'
    (tmp_path / "metrics.jsonl").write_bytes(good + line + b"\n" + good.replace(b"1,", b"2,"))
    MetricWriter(str(tmp_path), step=3).close()
    assert steps_of(tmp_path) == [1, 2]


def refusal(tmp_path):
    with pytest.raises(UserError) as caught:
        MetricWriter(str(tmp_path), step=300)
    return str(caught.value)


def test_a_full_disk_at_the_start_leaves_the_lines_as_they_are(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = "".join(f'{{"step": {step}, "train/loss": 0.5}}\n' for step in range(300))
    path.write_text(lines)
    with files_up_to(4000):
        told = refusal(tmp_path)
    assert told.startswith(f"{path} cannot be written (File too large); ")
    assert path.read_text() == lines
    assert os.listdir(tmp_path) == ["metrics.jsonl"]
    path.write_text("")
    with files_up_to(10):  # the lines fit, for there are none; TensorBoard's first event does not
        assert refusal(tmp_path).startswith(f"{tmp_path}/tensorboard cannot be written (File ")


def test_what_is_in_the_way_is_told(tmp_path):
    for number, (name, make, reason) in enumerate(
        (
            ("metrics.jsonl", os.mkdir, "read (Is a directory)"),
            ("metrics.jsonl", os.mkfifo, "read (not a regular file)"),
            ("metrics.jsonl.tmp", os.mkdir, "written (Is a directory)"),
            ("tensorboard", lambda path: path.write_text("mine"), "written (File exists)"),
            ("tensorboard", lambda path: path.symlink_to(tmp_path), "written (it is a link)"),
        )
    ):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        make(folder / name)
        told = f"{folder / name.removesuffix('.tmp')} cannot be {reason}; "
        assert refusal(folder).startswith(told)
        assert (folder / name).exists()


def test_a_result_that_a_full_disk_refuses_leaves_the_one_before(tmp_path):
    write_json(tmp_path / "result.json", {"steps": 1})
    with files_up_to(10), pytest.raises(UserError, match=r"cannot be written \(File too large\)"):
        write_json(tmp_path / "result.json", {"steps": 2, "note": "x" * 100})
    assert json.loads((tmp_path / "result.json").read_text()) == {"steps": 1}
    assert os.listdir(tmp_path) == ["result.json"]
