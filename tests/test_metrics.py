"""Metric files across resumes."""

import contextlib
import json
import resource

import pytest

from must_jax.errors import UserError
from must_jax.metrics import MetricWriter, write_json


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


def test_lines_that_a_full_disk_refuses_are_written_later(tmp_path):
    writer = MetricWriter(str(tmp_path), step=0)
    writer.write(1, {"train/loss": 1.0})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, limits[1]))  # in the midst of the second line
    try:
        for step in (2, 3):
            writer.write(step, {"train/loss": float(step)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert lines_of(tmp_path) == [{"step": 1, "train/loss": 1.0}]
    writer.write(4, {"train/loss": 4.0})
    writer.close()
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3, 4]
