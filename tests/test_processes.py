"""Several processes as one run, on loopback: the same numbers, one writer, and one end."""

import json
import os
import pathlib
import resource
import shutil
import signal
import socket
import time

import jax
import numpy as np
import pytest
import tiny_run
from commands import workers_of
from forked_main import free_address, slurm_task, told_by

from must_jax.experiment import build
from must_jax.resume import read_state

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]

STEPS = 12  # in three epochs
# float32 sums in another order, and what twelve steps of Adam make of them.
ROUNDING = {"rel": 2e-4, "abs": 1e-6}
FSDP = ("--config.mesh.fsdp=8",)
SPLIT = ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.model=2")


def config_of(folder):
    config = tiny_run.config(folder)
    config.epochs = 3
    config.checkpoints_to_keep = 3
    config.log_every_steps = 1
    # Adam makes of a gradient that is rounding alone a whole step; this many are few.
    config.learning_rate = 1e-4
    return config


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tiny_run.write_all(tmp_path_factory.mktemp("inputs"))
    tests = pathlib.Path(__file__).parent
    (folder / "config.py").write_text(
        "import pathlib, sys\n"
        f"sys.path.append({str(tests)!r})\n"
        "import test_processes\n"
        f"def get_config():\n    return test_processes.config_of(pathlib.Path({str(folder)!r}))\n"
    )
    return folder


def by_flags(count):
    """Flags and environment of each process, for all to find each other."""
    common = [f"--coordinator_address={free_address()}", f"--num_processes={count}"]
    return [([*common, f"--process_id={i}"] if count > 1 else [], {}) for i in range(count)]


def by_slurm(count):
    """As SLURM tells its tasks, of a job whose port is free."""
    job = next(
        job for job in range(os.getpid() % 2**12, 2**13) if is_free(job % 2**12 + 2**16 - 2**12)
    )
    return [([], slurm_task(i, count=count, job=job)) for i in range(count)]


def is_free(port):
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) != 0


@pytest.fixture(scope="module")
def start(inputs, starter):
    """Starts the run of `inputs` in `count` processes that share the devices."""

    def start(workdir, *flags, count=1, devices=8, meet=by_flags, of_process=lambda _: ()):
        common = [f"--config={inputs}/config.py", f"--workdir={workdir}", *flags]
        commands = [
            ([*common, *found, *of_process(index)], environment)
            for index, (found, environment) in enumerate(meet(count))
        ]
        return starter.start(commands, devices=devices // count)

    return start


@pytest.fixture(scope="module")
def run(starter, start):
    """`start`, to the end: exit codes, stdout and stderr of each, and the processes."""

    def run(workdir, *flags, **keywords):
        started = start(workdir, *flags, **keywords)
        codes = starter.finish(started)
        return codes, *told_by(started), started

    return run


@pytest.fixture(scope="module")
def run_alone(run, tmp_path_factory):
    """A run of one process: its workdir, and it."""
    workdir = tmp_path_factory.mktemp("runs") / "alone"
    codes, _, stderr, started = run(workdir)
    assert codes == [0], stderr
    return workdir, started


@pytest.fixture(scope="module")
def alone(run_alone):
    return run_alone[0]


@pytest.fixture(scope="module")
def of_two(run, alone):
    """A run of two processes, which split the batch: its workdir, what they told, and they."""
    workdir = alone.parent / "of_two"
    codes, stdout, stderr, started = run(workdir, count=2)
    assert codes == [0, 0], stderr
    return workdir, stdout, started


def wait_until(happened, seconds=200):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def has_logged(workdir):
    log = workdir / "metrics.jsonl"
    return lambda: log.exists() and log.read_text()


def metrics_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def result_of(workdir):
    return json.loads((workdir / "result.json").read_text())


def final_state(inputs, workdir):
    """The final state of a run, whatever its mesh was."""
    experiment = build(config_of(inputs))
    restored = read_state(experiment, str(workdir), mesh=experiment.make_mesh())
    assert restored.step == STEPS
    return jax.device_get(restored.state)


def assert_same_run(inputs, ours, expected):
    """Every number of the way, the result, and both trees of parameters."""
    for a, b in zip(metrics_of(ours), metrics_of(expected), strict=True):
        a, b = ({k: v for k, v in x.items() if not k.startswith("perf/")} for x in (a, b))
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == pytest.approx(b[name], **ROUNDING), (a["step"], name)
    of_the_moment = {"seconds", "student_digest", "teacher_digest", "optimizer_digest"}
    assert result_of(ours).keys() == result_of(expected).keys()
    for name in result_of(ours).keys() - of_the_moment:
        assert result_of(ours)[name] == result_of(expected)[name], name
    mine, theirs = final_state(inputs, ours), final_state(inputs, expected)
    for tree in ("params", "teacher_params"):
        pairs = zip(
            jax.tree.leaves_with_path(getattr(mine, tree)),
            jax.tree.leaves(getattr(theirs, tree)),
            strict=True,
        )
        for (path, a), b in pairs:
            name = jax.tree_util.keystr(path)
            # No loss depends on a key's bias: its gradient is rounding, of which Adam makes steps.
            a, b = (x[:, [0, 2]] if name.endswith("['qkv']['bias']") else x for x in (a, b))
            # Steps move parameters by up to 1.4e-5; rounding was seen to make 1e-7 of it.
            np.testing.assert_allclose(a, b, rtol=0, atol=3e-7, err_msg=f"{tree} {name}")


def cut_back(workdir, copy, *, step):
    """A copy of a run as it was when the checkpoint of a step was written."""
    shutil.copytree(workdir, copy)
    for path in (copy / "checkpoints").iterdir():
        if path.name.isdecimal() and int(path.name) > step:
            shutil.rmtree(path)
    (copy / "result.json").unlink()
    return copy


def test_two_processes_do_the_run_of_one(inputs, run_alone, of_two):
    alone, one = run_alone
    workdir, stdout, started = of_two
    assert_same_run(inputs, workdir, alone)
    # The first process alone speaks; 8 devices don't divide the 21 test images.
    assert "8 cpu device(s) of 2 processes" in stdout[0]
    assert "21 labelled to test on" in stdout[0]
    assert not stdout[1]
    # Of what one process opens, the second of two opens half, give or take the images that are
    # tried before a run; the first makes the report as well.
    reads = [
        sum(n for p, n in json.loads(process.opened.read_text()).items() if f"{inputs}/train/" in p)
        for process in (*one, *started)
    ]
    assert 4 * STEPS <= reads[2] <= reads[0] / 2 + 8
    assert reads[1] < reads[0]


def test_one_device_does_the_same_run(inputs, alone, run):
    workdir = alone.parent / "one_device"
    codes, _, stderr, _ = run(workdir, devices=1)
    assert codes == [0], stderr
    assert_same_run(inputs, workdir, alone)


def test_a_split_state_does_the_same_run_in_tasks_of_slurm(inputs, alone, run):
    workdir = alone.parent / "fsdp"
    codes, stdout, stderr, _ = run(workdir, *FSDP, "--profile=5:6", count=2, meet=by_slurm)
    assert codes == [0, 0], stderr
    assert "of 2 processes, as 1 data x 8 fsdp x 1 model" in stdout[0]
    traces = {path.name: list(path.rglob("*.pb")) for path in (workdir / "profile").iterdir()}
    assert traces.keys() == {"process_0", "process_1"}
    assert all(len(files) == 1 for files in traces.values())
    assert_same_run(inputs, workdir, alone)


def test_a_run_goes_on_with_another_number_of_processes(inputs, alone, run):
    workdirs = [alone.parent / name for name in ("four", "four_one", "four_one_two")]
    codes, stdout, stderr, _ = run(workdirs[0], *SPLIT, count=4)
    assert codes == [0] * 4, stderr
    assert "of 4 processes, as 2 data x 2 fsdp x 2 model" in stdout[0]
    assert not any(stdout[1:])
    assert_same_run(inputs, workdirs[0], alone)
    for i, (step, count) in enumerate([(4, 1), (8, 2)]):
        workdir = cut_back(workdirs[i], workdirs[i + 1], step=step)
        codes, stdout, stderr, _ = run(workdir, count=count)
        assert codes == [0] * count, stderr
        assert f"resuming {workdir} at step {step} of {STEPS}" in stdout[0]
    # Records in another order would be other losses, at every one of the steps.
    assert_same_run(inputs, workdirs[-1], alone)


def test_killed_processes_end_the_run_at_once_and_it_goes_on_bit_for_bit(of_two, start, starter):
    expected, _, _ = of_two
    workdir = expected.parent / "killed"
    for step, victim in [(4, 1), (8, 0)]:
        started = start(workdir, count=2)
        wait_until((workdir / "checkpoints" / str(step) / "_CHECKPOINT_METADATA").exists)
        os.kill(started[victim].pid, signal.SIGKILL)
        killed = time.monotonic()
        codes = starter.finish(started)
        assert time.monotonic() - killed < 30
        _, stderr = told_by(started)
        survivor = 1 - victim
        assert (codes[victim], codes[survivor]) == (-signal.SIGKILL, os.EX_TEMPFAIL), stderr
        errors = [line for line in stderr[survivor].splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, stderr
        assert f"process {victim} is gone" in errors[0]
        assert "Traceback" not in stderr[survivor]
        assert not (workdir / "result.json").exists()
    started = start(workdir, count=2)
    codes = starter.finish(started)
    stdout, stderr = told_by(started)
    assert codes == [0, 0], stderr
    assert f"resuming {workdir} at step 8" in stdout[0]
    for digest in ("student_digest", "teacher_digest", "optimizer_digest"):
        assert result_of(workdir)[digest] == result_of(expected)[digest]


def test_one_that_can_not_go_on_ends_all_with_its_reason_while_others_wait_for_it(
    of_two, start, starter
):
    """In the midst of the steps, and of a checkpoint: nobody waits for what will not come."""
    workdir = of_two[0].parent / "without_batches"
    flags = ["--config.loader.num_workers=1", "--config.checkpoint_every_steps=1"]
    started = start(workdir, *flags, "--config.epochs=50", count=2)
    wait_until(has_logged(workdir))
    os.kill(workers_of(started[1])[0], signal.SIGKILL)
    killed = time.monotonic()
    codes = starter.finish(started)
    assert time.monotonic() - killed < 60
    _, stderr = told_by(started)
    assert codes == [os.EX_TEMPFAIL] * 2, stderr
    for told in stderr:
        errors = [line for line in told.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, stderr
        assert "a process that makes batches" in errors[0]
        assert "Traceback" not in told


def test_a_checkpoint_of_which_one_process_reads_a_damaged_part_is_passed_over_by_all(run, alone):
    workdir = alone.parent / "damaged"
    codes, _, stderr, _ = run(workdir, *FSDP, count=2)
    assert codes == [0, 0], stderr
    parts = (workdir / "checkpoints" / str(STEPS)).rglob("ocdbt.process_1/d/*")
    part = max(parts, key=lambda path: path.stat().st_size)
    part.write_bytes(bytes(part.stat().st_size))
    codes, stdout, stderr, _ = run(workdir, *FSDP, count=2)
    assert codes == [0, 0], stderr
    told = [line for line in stdout[0].splitlines() if "passed over" in line]
    assert len(told) == 1
    assert f"checkpoints/{STEPS} is damaged (" in told[0]
    assert f"passed over for step {STEPS * 2 // 3}" in told[0]


@pytest.mark.parametrize("refused", ["write", "folder"])
def test_a_disk_that_fails_for_a_while_stops_no_process(refused, of_two, start, starter):
    """Of one process alone in the first case."""
    expected, _, _ = of_two
    workdir = expected.parent / f"refused_{refused}"
    folder, parked = workdir / "checkpoints", workdir / "parked"
    started = start(workdir, count=2)
    wait_until(has_logged(workdir))
    if refused == "write":
        resource.prlimit(started[1].pid, resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    else:
        folder.rename(parked)
        folder.write_text("")
    wait_until(lambda: "was not written" in started[0].out.read_text())
    if refused == "write":
        resource.prlimit(started[1].pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    else:
        folder.unlink()
        parked.rename(folder)
    codes = starter.finish(started)
    stdout, stderr = told_by(started)
    assert codes == [0, 0], stderr
    told = {"write": "File too large", "folder": "Not a directory"}[refused]
    assert f"of step 4 was not written: {told}; training goes on" in stdout[0]
    assert not any(stderr)
    for digest in ("student_digest", "teacher_digest", "optimizer_digest"):
        assert result_of(workdir)[digest] == result_of(expected)[digest]


def test_a_failure_of_one_process_ends_all_with_its_reason(inputs, alone, run):
    codes, _, stderr, _ = run(
        alone.parent / "failing",
        count=2,
        of_process=lambda index: [f"--config.dataset.train={inputs}/no"] if index else [],
    )
    assert codes == [2, 2], stderr
    assert f"{inputs}/no" in stderr[1]
    assert "process 1 stopped" in stderr[0]
    assert f"{inputs}/no" in stderr[0]


def test_other_test_images_on_one_process_end_all(inputs, alone, run):
    """Else each would score its part of another list."""
    others = alone.parent / "other_test_images"
    shutil.copytree(inputs / "test", others)
    (others / "star" / "000.png").rename(others / "circle" / "100.png")
    codes, _, stderr, _ = run(
        alone.parent / "scored_on_others",
        count=2,
        of_process=lambda index: [f"--config.dataset.test={others}"] if index else [],
    )
    assert codes == [2, 2], stderr
    for told in stderr:
        assert len(told.splitlines()) == 1
        assert told.startswith("error: the SHA-256 of the test images' names and labels is ")
        assert "every process must be started with the same command, on the same files" in told


def test_images_that_fail_on_any_process_end_the_run_on_all(alone, run):
    broken = alone.parent / "broken"
    tiny_run.write_images(broken, count=36, seed=0)
    for path in sorted(broken.iterdir())[:12]:
        path.write_bytes(path.read_bytes()[:60])
    codes, stdout, stderr, _ = run(
        alone.parent / "failed", f"--config.dataset.train={broken}", count=2
    )
    assert codes == [2, 2], stderr
    for told in stderr:
        assert "do not decode" in told
    named = [line for line in stdout[0].splitlines() if line.startswith("skipped")]
    assert named
    assert len(set(named)) == len(named)
    assert not stdout[1]


def test_two_processes_predict_what_one_does(alone, run, tmp_path):
    images = tmp_path / "images"
    tiny_run.write_images(images, count=19, seed=7)
    # Rows 1 and 6 of a batch of 8 are of different processes.
    for record in (1, 14):
        (images / f"{record:03}.png").write_bytes(b"no image")

    def predicted(count):
        path = tmp_path / f"{count}.jsonl"
        flags = ["--mode=predict", f"--images={images}", f"--output={path}"]
        codes, stdout, stderr, _ = run(alone, *flags, count=count)
        assert codes == [0] * count, stderr
        assert stdout[0].startswith("teacher predicted 19 images, of which 2 failed")
        assert not any(stdout[1:])
        return [json.loads(line) for line in path.read_text().splitlines()]

    one, two = predicted(1), predicted(2)
    assert [row["path"] for row in one] == [f"{images}/{record:03}.png" for record in range(19)]
    for ours, expected in zip(two, one, strict=True):
        for name, value in expected.items():
            if name.startswith("probability") and value is not None:
                value = pytest.approx(value, **ROUNDING)
            assert ours[name] == value, (ours["path"], name)
    lists = [(tmp_path / f"{count}.jsonl.failed.csv").read_text() for count in (1, 2)]
    assert lists[0] == lists[1]
    assert [line.count("not an image") for line in lists[0].splitlines()] == [0, 1, 1]


def test_asked_to_stop_all_processes_save_at_one_step(alone, start, starter):
    workdir = alone.parent / "stopped"
    flags = ["--config.epochs=20", "--config.eval_every_epochs=20"]
    started = start(workdir, *flags, count=2)
    wait_until(has_logged(workdir))
    os.kill(started[1].pid, signal.SIGTERM)
    codes = starter.finish(started)
    stdout, stderr = told_by(started)
    assert codes == [os.EX_TEMPFAIL] * 2, stderr
    step = int(stdout[0].splitlines()[-1].split()[6])
    assert 0 < step < 80
    assert stdout[0].splitlines()[-1] == f"asked to stop: saved at step {step} of 80"
    assert not stdout[1]
    # Both wrote their part: it is whole, and goes on in one process too.
    started = start(workdir, *flags, "--config.loader.num_threads=1")
    assert starter.finish(started) == [0]
    assert f"resuming {workdir} at step {step} of 80" in told_by(started)[0][0]
