"""A run of some seconds of steps, so that a signal finds it among them, as a process."""

import time

from commands import finish, metrics_of, result_of, start

LONG = {
    "epochs": 60,
    "eval_every_epochs": 20,
    "checkpoint_every_epochs": 20,
    "checkpoint_every_steps": 0,
    "log_every_steps": 7,
}


def begin(config, workdir, *flags, **how):
    return start(
        f"--config={config}",
        f"--workdir={workdir}",
        *flags,
        cache=config.parent / "cache",
        devices=1,
        **how,
    )


def run_undisturbed(config, folder):
    """The workdir of a run that nothing disturbs."""
    workdir = folder / "undisturbed"
    code, _, stderr = finish(begin(config, workdir))
    assert code == 0, stderr
    return workdir


def wait_for(process, happened, seconds=200):
    deadline = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.005)


def has_logged(workdir, step):
    path = workdir / "metrics.jsonl"
    return lambda: path.exists() and f'"step": {step}' in path.read_text()


def assert_same(workdir, undisturbed):
    assert result_of(workdir) == result_of(undisturbed)
    assert metrics_of(workdir) == metrics_of(undisturbed)
