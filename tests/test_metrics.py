"""Metric files across resumes."""

import json

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


def test_a_result_that_cannot_be_written(tmp_path):
    (tmp_path / "eval.json").mkdir()
    for path in (tmp_path / "eval.json", tmp_path / "nowhere" / "eval.json"):
        with pytest.raises(UserError, match=r"eval\.json cannot be written"):
            write_json(path, {})
