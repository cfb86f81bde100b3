"""The command line as a process: flags, refusals, exit codes, a run without jit."""

import json
import os
import pathlib
import subprocess
import sys

import commands
import pytest
import tiny_run
from commands import finish

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tiny_run.write_all(tmp_path_factory.mktemp("inputs"))
    (folder / "config.py").write_text(
        "import pathlib, sys\n"
        f"sys.path.append({str(ROOT / 'tests')!r})\n"
        "import tiny_run\n"
        f"def get_config():\n    return tiny_run.config(pathlib.Path({str(folder)!r}))\n"
    )
    return folder


def start(*flags):
    return commands.start(*flags, devices=1)


def run(*flags):
    return finish(start(*flags))


# Each command in a process of its own, which a single one that has imported everything becomes.
FORKED = """
import json, os, sys, tempfile
from must_jax import main
outcomes = []
for arguments in json.load(sys.stdin):
    files = [tempfile.TemporaryFile("w+") for _ in range(2)]
    child = os.fork()
    if not child:
        for number, file in enumerate(files, start=1):
            os.dup2(file.fileno(), number)
        sys.argv = ["must_jax", *arguments]
        main.run()
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    told = []
    for file in files:
        file.seek(0)
        told.append(file.read())
    outcomes.append([code, *told])
print(json.dumps(outcomes))
"""


def forked(commands):
    """Exit code, stdout and stderr of each."""
    done = subprocess.run(
        [sys.executable, "-c", FORKED],
        input=json.dumps([[str(flag) for flag in flags] for flags in commands]),
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    flags = [f"--config={inputs}/config.py", f"--workdir={workdir}", "--profile=5:6"]
    code, stdout, stderr = run(*flags)
    assert code == 0, stderr
    assert not stderr
    return workdir, stdout


def result_of(workdir):
    return json.loads((workdir / "result.json").read_text())


def test_a_run_tells_what_a_person_wants_to_know(finished):
    workdir, stdout = finished
    lines = stdout.splitlines()
    assert "36 images, 21 labelled to test on, 3 classes, 2 templates" in lines[0]
    assert lines[1].startswith("zero-shot accuracy ")
    assert any("ETA" in line and "images/s" in line for line in lines)
    assert f"trace of steps 5 to 6 is in {workdir}/profile; docs/watching.md opens it" in lines
    assert len(list((workdir / "profile").rglob("*.xplane.pb"))) == 1
    assert "zero-shot" in lines[-1]
    assert "-> student" in lines[-1]
    assert "-> teacher" in lines[-1]
    assert str(workdir) in lines[-1]


def test_eval_needs_the_workdir_alone(finished):
    workdir, _ = finished
    code, stdout, stderr = run("--mode=eval", f"--workdir={workdir}")
    assert code == 0, stderr
    assert "teacher" in stdout
    assert (
        json.loads((workdir / "eval.json").read_text())["teacher_top1"]
        == (result_of(workdir)["teacher_top1"])
    )


def test_without_jit_the_same_command_runs(inputs, tmp_path):
    flags = [
        f"--config={inputs}/config.py",
        "--config.dataset.test=",
        "--config.batch_size=16",
        "--config.epochs=1",
        "--config.probe_images=4",
        "--config.loader.num_threads=0",
    ]
    commands = {"jitted": [], "plain": ["--disable_jit"]}
    started = [start(*flags, f"--workdir={tmp_path}/{n}", *more) for n, more in commands.items()]
    for process in started:
        code, _, stderr = finish(process)
        assert code == 0, stderr
    jitted, plain = (
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])
        for name in commands
    )
    assert plain["step"] == jitted["step"] == 2
    for name in ("loss_self_train", "loss_fair", "loss_mim", "loss_align", "loss"):
        # Two steps in: float32 roundings in another order, and what Adam makes of the first ones.
        assert plain[f"train/{name}"] == pytest.approx(jitted[f"train/{name}"], rel=1e-4), name


def test_zero_shot_is_told_without_a_workdir(inputs, finished):
    flags = [f"--config={inputs}/config.py", "--mode=zeroshot", "--config.expected.zeroshot=50.0"]
    code, stdout, stderr = run(*flags)
    assert code == 0, stderr
    told = f"zero-shot accuracy {100 * result_of(finished[0])['zeroshot_top1']:.1f} %, mean per-"
    assert stdout.startswith(told)
    assert "published accuracy 50.0 % on 21 images" in stdout
    assert len(stdout.splitlines()) == 1


REFUSALS = {
    "unknown field": (["--config.batchsize=8"], "no field batchsize; did you mean batch_size?"),
    "ill-typed field": (["--config.batch_size=many"], "batch_size"),
    "fraction for a count": (["--config.epochs=1.5"], "epochs"),
    "value out of range": (["--config.mask_ratio=2.0"], "config.mask_ratio is 2.0"),
    "unknown flag": (["--wrkdir=x"], "wrkdir"),
    "unknown mode": (["--mode=fly"], "fly"),
    "flag of another mode": (["--top_k=3"], "--top_k goes with --mode=predict"),
    "unknown tree": (["--mode=predict", "--tree=oak"], "oak"),
    "unknown format": (["--mode=predict", "--output=x.xlsx"], "must be a name that ends in .csv"),
    "an ending without a name": (
        ["--mode=predict", "--output=.csv"],
        "must be a name that ends in .csv",
    ),
    "a step of thousands of digits": (["--mode=eval", f"--step={'9' * 5000}"], "must be last, "),
    "a range of thousands of digits": ([f"--profile=1:{'9' * 5000}"], "is no range of steps"),
    "a port of thousands of digits": (
        [f"--coordinator_address=a:{'9' * 5000}", "--num_processes=2", "--process_id=0"],
        "it must be HOST:PORT",
    ),
    "no range of steps": (["--profile=13:10"], "--profile=13:10 is no range of steps"),
    "a trace of no training": (["--profile", "--mode=eval"], "--mode=eval has none"),
    "stray argument": (["train"], "'train' is not a flag"),
    "a run in a bucket": (["--workdir=gs://b/run"], "--workdir=gs://b/run must be a local path"),
    "a checkpoint in a bucket": (
        ["--config.checkpoint=s3://b/clip"],
        "config.checkpoint=s3://b/clip must be a local path; copy it to a disk first",
    ),
    "missing file": (["--config.dataset.class_names=/nowhere/names.txt"], "/nowhere/names.txt"),
}


def test_refusals_are_one_line_and_exit_code_2(inputs, tmp_path):
    base = [f"--config={inputs}/config.py", f"--workdir={tmp_path}/run"]
    broken = tmp_path / "broken.py"
    broken.write_text(
        "from must_jax.config import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.lerning_rate = 1.0\n"
        "    return config\n"
    )
    empty = tmp_path / "empty.py"
    empty.write_text("def get_config():\n    pass\n")
    leaving = tmp_path / "leaving.py"
    leaving.write_text("import sys\nsys.exit(0)\n")
    raising = {
        "nothing.py": (
            "import nowhere\n",
            "ModuleNotFoundError: No module named 'nowhere' (line 1)",
        ),
        "base.py": (
            "class E(BaseException):\n    pass\ndef get_config():\n    raise E('boo')\n",
            "E: boo (line 4)",
        ),
        "mute.py": (
            "class E(Exception):\n    def __str__(self):\n        1 / 0\n\nraise E\n",
            "does not load: E (line 5)",
        ),
        "lines.py": ("def get_config():\n    raise ValueError('a\\nb')\n", "b (line 2)"),
    }
    for name, (text, _) in raising.items():
        (tmp_path / name).write_text(text)
    commands = {name: ([*base, *flags], told) for name, (flags, told) in REFUSALS.items()}
    commands |= {
        name: ([f"--config={tmp_path / name}", base[1]], told)
        for name, (_, told) in raising.items()
    }
    commands |= {
        "a config behind a URL": (["--config=gs://b/c.py", base[1]], "must be a local path"),
        "no config": ([base[1]], "--config is missing"),
        "no workdir": ([base[0]], "--workdir is missing"),
        "config file missing": (["--config=/nowhere.py", base[1]], "/nowhere.py"),
        "config file with an unknown field": (
            [f"--config={broken}", base[1]],
            "no field lerning_rate; did you mean learning_rate?",
        ),
        "override without a config": (["--config.epochs=2", base[1]], "--config"),
        "a config file that returns nothing": ([f"--config={empty}", base[1]], "does not load"),
        "a config file that ends the program": ([f"--config={leaving}", base[1]], "sys.exit(0)"),
        "a workdir that is no text": ([base[0], "--workdir=r\udcff"], "must be a path in UTF-8"),
        "a model that the recipe does not have": (
            [f"--config={ROOT}/configs/dtd.py:h14", base[1]],
            "has no model 'h14'; it has b16, l14, b32",
        ),
        "a model of a config without any": ([f"{base[0]}:b16", base[1]], "takes 0 positional"),
        "zero-shot of nothing": (["--mode=zeroshot"], "--config is missing"),
        "eval of nothing": (["--mode=eval", base[1]], "config.json cannot be read"),
    }
    for name, outcome in zip(commands, forked([c for c, _ in commands.values()]), strict=True):
        code, stdout, stderr = outcome
        assert code == 2, (name, code, stderr)
        assert commands[name][1] in stderr, (name, stderr)
        assert stderr.startswith("error: "), (name, stderr)
        assert len(stderr.splitlines()) == 1, (name, stderr)
        assert not stdout, (name, stdout)
    assert run("--config.batchsize=8", *base) == (
        2,
        "",
        "error: config has no field batchsize; did you mean batch_size?\n",
    )
    assert not (tmp_path / "run").exists()


def test_the_tpu_library_is_quiet_where_there_is_no_chip(inputs):
    """With JAX left to find the devices: the tests have libtpu, for plans, and no chip."""
    env = {name: value for name, value in os.environ.items() if name[:4] != "TPU_"}
    command = [sys.executable, "-m", "must_jax.main", "--mode=zeroshot"]
    done = subprocess.run(
        [*command, f"--config={inputs}/config.py", "--config.batch_size=1"],
        cwd=ROOT,
        env=env | {"JAX_PLATFORMS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "TPU" not in done.stderr
