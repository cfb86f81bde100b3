"""The scripts of docs/pods.md, as far as they can be checked without the machines."""

import math
import pathlib
import re
import subprocess

import pytest
import yaml
from absl import flags

import must_jax.main
from must_jax.config import default_config, flat_fields

assert must_jax.main.run  # it defines the flags
ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "pods.md").read_text()
SCRIPTS = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)


def test_four_ways_are_told():
    assert len(SCRIPTS) == 3
    assert TEXT.count("```yaml") == 1


@pytest.mark.parametrize("script", SCRIPTS, ids=["tpu", "slurm", "docker"])
def test_scripts_parse(script):
    told = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert not told.stderr


def test_hosts_and_chips_of_the_job_set_agree():
    (text,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    (job,) = yaml.safe_load(text)["spec"]["replicatedJobs"]
    job = job["template"]["spec"]
    pod = job["template"]["spec"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    (container,) = pod["containers"]
    resources = container["resources"]
    chips = resources["limits"]["google.com/tpu"]
    assert resources["requests"]["google.com/tpu"] == chips
    assert job["parallelism"] == job["completions"]
    assert chips * job["parallelism"] == math.prod(map(int, topology.split("x")))
    assert {v["name"] for v in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    assert container["command"][:3] == ["python", "-m", "must_jax.main"]


def test_flags_and_fields_exist():
    commands = re.findall(r"must_jax\.main((?:[\s\\-]+--[\w.]+=[^\s\"']+)+)", TEXT)
    assert len(commands) == 4
    fields = dict(flat_fields(default_config()))
    for command in commands:
        given = dict(re.findall(r"--([\w.]+)=(\S+)", command))
        assert {"config", "workdir"} <= given.keys()
        for name in given:
            known = fields if name.startswith("config.") else flags.FLAGS
            assert name.removeprefix("config.") in known
        assert given["config"] == "configs/mine.py" or (ROOT / given["config"]).is_file()
