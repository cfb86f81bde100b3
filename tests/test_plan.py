"""`python -m must_jax.plan`, as a command."""

import json
import subprocess
import sys

import jax
import pytest

from must_jax.errors import UserError
from must_jax.planning.measure import _compile

SMALL = [
    "--config=configs/digits.py",
    "--model=b32",
    "--num_classes=10",
    "--num_images=1000",
    "--config.image_size=32",
    "--config.mask_patch_size=32",
]


def plan(*arguments):
    command = [sys.executable, "-m", "must_jax.plan", *SMALL, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
def test_one_json_object_a_batch_size():
    done = plan("--topology=cpu:8", "--batch=64,128", "--json")
    assert done.returncode == 0, done.stderr
    small, large = (json.loads(line) for line in done.stdout.splitlines())
    assert (small["batch_size"], large["batch_size"]) == (64, 128)
    for fields in (small, large):
        assert fields["fits"] is True
        assert fields["compile_seconds"] > 0
        assert fields["peak_bytes"] > fields["memory"]["state"] > 4 * 86e6 * 4
        # One layer of twelve is trimmed, and a 32-pixel image of one patch is all masked.
        assert 0.9 < fields["flops_ratio"] < 1.02
        assert {c["kind"] for c in fields["collectives"]} == {"all-reduce"}
        assert fields["bytes_accessed"] > fields["memory"]["state"]
    assert large["flops"] == pytest.approx(2 * small["flops"], rel=0.01)


@pytest.mark.slow
def test_a_tpu_that_is_not_here():
    done = plan("--topology=v5e:2x2", "--batch=240", "--config.grad_accumulation=3")
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert "v5e:2x2: 4 chips, 1 hosts; batch 240 (60 a chip) fits" in text
    for row in (
        "peak memory a chip",
        "FLOPs a chip",
        "bytes a chip",
        "all-reduce",
        "step at least",
    ):
        assert row in text
    # No batch exceeds the images, and what is proposed was compiled and fits.
    largest = int(text.split("largest batch found to fit: ")[1].split()[0])
    assert 240 < largest <= 1000
    assert largest % 12 == 0  # chips times parts
    assert f"batch {largest} (" in text
    assert "not counted" not in text


@pytest.mark.slow
def test_json_names_the_largest_batch_last():
    done = plan("--topology=v5e:2x2", "--batch=960", "--config.dtype=bfloat16", "--json")
    assert done.returncode == 0, done.stderr
    *sizes, last = (json.loads(line) for line in done.stdout.splitlines())
    # 1,000 images are the limit, and fit.
    assert [fields["batch_size"] for fields in sizes if fields["fits"]] == [960, 1000]
    assert last == {"topology": "v5e:2x2", "largest_batch": 1000}


def test_a_compiler_that_refuses_is_told_in_one_line():
    def build():
        raise jax.errors.JaxRuntimeError("INTERNAL: Mosaic failed to compile\nits whole module")

    with pytest.raises(UserError, match=r"refuses the step: INTERNAL: Mosaic failed to compile$"):
        _compile(build, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v9:4x4"], "--topology=v9:4x4 is not known"),
        (["--topology=v5e:4"], "--topology=v5e:4 is not known"),
        (["--topology=h100:3"], "--topology=h100:3 is not known"),
        (["--topology=v5e:3x5"], "--topology=v5e:3x5 is refused by its compiler"),
        ([], "--topology is missing"),
        (["--topology=cpu:8", "--batch=64,x"], "--batch=64,x is no list of batch sizes"),
        (["--topology=cpu:8", "--batch=65"], "config.batch_size is 65"),
        (["--topology=cpu:8", "--batch=64", "--model=b7"], "--model=b7 is not known"),
        (["--topology=cpu:8", "--batch=64", "--num_classes=0"], "--num_classes=0"),
        (["--topology=cpu:8", "--batch=64", "--num_classes=99999999999"], "must be from 1 to"),
        (["--topology=cpu:8", f"--batch={'9' * 5000}"], "is no list of batch sizes"),
        ([f"--topology=cpu:{'9' * 5000}", "--batch=64"], "is not known"),
        (["--topology=cpu:8", "--batch=64", "extra"], "argument 'extra' is not a flag"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(arguments, message):
    done = plan(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in done.stderr
