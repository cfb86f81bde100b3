"""Several processes as one run, on loopback: the same numbers, one writer, and one end."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest
import tiny_run

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]

ROOT = pathlib.Path(__file__).parents[1]
# float32 sums in another order, and what eight steps of Adam make of them.
ROUNDING = {"rel": 2e-4, "abs": 1e-6}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tiny_run.write_all(tmp_path_factory.mktemp("inputs"))
    (folder / "config.py").write_text(
        "import pathlib, sys\n"
        f"sys.path.append({str(ROOT / 'tests')!r})\n"
        "import tiny_run\n"
        "def get_config():\n"
        f"    config = tiny_run.config(pathlib.Path({str(folder)!r}))\n"
        "    config.log_every_steps = 1\n"
        "    config.learning_rate = 1e-4\n"
        "    return config\n"
    )
    return folder


def run(count, workdir, *flags, of_process=lambda _: ()):
    """Eight devices in `count` processes: the exit code, stdout and stderr of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    several = [f"--coordinator_address={address}", f"--num_processes={count}"]
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "must_jax.main", f"--workdir={workdir}"),
                *([*several, f"--process_id={index}"] if count > 1 else []),
                *flags,
                *of_process(index),
            ],
            cwd=ROOT,
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "JAX_NUM_CPU_DEVICES": str(8 // count),
                # Of the tests' own: a run repeats the programs of the one before.
                "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "cache"),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    try:
        told = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    return codes, [_own_lines(out) for out, _ in told], [err for _, err in told]


def _own_lines(stdout):
    """Without those of the library that connects CPU processes."""
    return "\n".join(line for line in stdout.splitlines() if not line.startswith("[Gloo]"))


@pytest.fixture(scope="module")
def alone(inputs, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "alone"
    codes, _, stderr = run(1, workdir, f"--config={inputs}/config.py")
    assert codes == [0], stderr
    return workdir


def metrics_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(ours, expected):
    for a, b in zip(metrics_of(ours), metrics_of(expected), strict=True):
        assert a.keys() == b.keys()
        for name in (name for name in a if not name.startswith("perf/")):
            assert a[name] == pytest.approx(b[name], **ROUNDING), (a["step"], name)
    ours, expected = (json.loads((w / "result.json").read_text()) for w in (ours, expected))
    of_the_moment = {"seconds", "student_digest", "teacher_digest"}
    assert ours.keys() == expected.keys()
    for name in ours.keys() - of_the_moment:
        assert ours[name] == expected[name], name


@pytest.mark.parametrize(
    ("count", "mesh"),
    [
        (2, ()),
        (4, ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.model=2")),
    ],
)
def test_processes_do_the_run_of_one(inputs, alone, count, mesh):
    workdir = alone.parent / f"{count}"
    flags = [f"--config={inputs}/config.py", "--profile=5:6", *mesh]
    codes, stdout, stderr = run(count, workdir, *flags)
    assert codes == [0] * count, stderr
    assert_same_run(workdir, alone)
    traces = {path.name: list(path.rglob("*.pb")) for path in (workdir / "profile").iterdir()}
    assert traces.keys() == {f"process_{index}" for index in range(count)}
    assert all(len(files) == 1 for files in traces.values())
    # The first process alone speaks; 8 devices don't divide the 21 test images.
    assert f"8 cpu device(s) of {count} processes" in stdout[0]
    assert "21 labelled to test on" in stdout[0]
    assert not any(stdout[1:])


def test_a_failure_of_one_process_ends_all_with_its_reason(inputs, alone):
    codes, _, stderr = run(
        2,
        alone.parent / "failing",
        f"--config={inputs}/config.py",
        of_process=lambda index: [f"--config.dataset.train={inputs}/no"] if index else [],
    )
    assert codes == [2, 2], stderr
    assert f"{inputs}/no" in stderr[1]
    assert "process 1 stopped" in stderr[0]
    assert f"{inputs}/no" in stderr[0]


def test_images_that_fail_on_any_process_end_the_run_on_all(inputs, alone):
    broken = alone.parent / "broken"
    tiny_run.write_images(broken, count=36, seed=0)
    for path in sorted(broken.iterdir())[:12]:
        path.write_bytes(path.read_bytes()[:60])
    codes, stdout, stderr = run(
        2,
        alone.parent / "failed",
        f"--config={inputs}/config.py",
        f"--config.dataset.train={broken}",
    )
    assert codes == [2, 2], stderr
    for told in stderr:
        assert "do not decode" in told
    named = [line for line in stdout[0].splitlines() if line.startswith("skipped")]
    assert named
    assert len(set(named)) == len(named)
    assert not stdout[1]


def test_two_processes_predict_what_one_does(inputs, alone, tmp_path):
    images = tmp_path / "images"
    tiny_run.write_images(images, count=19, seed=7)
    # Rows 1 and 6 of a batch of 8 are of different processes.
    for record in (1, 14):
        (images / f"{record:03}.png").write_bytes(b"no image")
    one, two = (
        predicted(tmp_path / f"{count}.jsonl", alone, count=count, images=images)
        for count in (1, 2)
    )
    assert [row["path"] for row in one] == [f"{images}/{record:03}.png" for record in range(19)]
    for ours, expected in zip(two, one, strict=True):
        for name, value in expected.items():
            if name.startswith("probability") and value is not None:
                value = pytest.approx(value, **ROUNDING)
            assert ours[name] == value, (ours["path"], name)
    lists = [(tmp_path / f"{count}.jsonl.failed.csv").read_text() for count in (1, 2)]
    assert lists[0] == lists[1]
    assert [line.count("not an image") for line in lists[0].splitlines()] == [0, 1, 1]


def predicted(path, workdir, *, count, images):
    codes, stdout, stderr = run(
        count, workdir, "--mode=predict", f"--images={images}", f"--output={path}"
    )
    assert codes == [0] * count, stderr
    assert stdout[0].startswith("teacher predicted 19 images, of which 2 failed")
    assert not any(stdout[1:])
    return [json.loads(line) for line in path.read_text().splitlines()]
