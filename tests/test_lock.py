"""requirements.lock is constraints.txt with hashes."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
WRITE = "run python tools/make_lock.py"


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text):
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)
    return {plain(name): version for name, version in found}


def test_the_lock_has_the_versions_of_the_constraints():
    lock = pins((ROOT / "requirements.lock").read_text())
    constraints = pins((ROOT / "constraints.txt").read_text())
    others = {name: (version, constraints.get(name)) for name, version in lock.items()}
    # Beyond the constraints are only packages of systems that the tests don't run on.
    assert {name for name, (_, known) in others.items() if known is None} <= {
        "colorama",
        "httpx2-jsfetch",
        "nest-asyncio",
    }, WRITE
    assert {k: v for k, v in others.items() if v[1] not in (None, v[0])} == {}, WRITE


def test_all_that_the_project_names_is_locked_but_torch():
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, built_with = content["project"], content["build-system"]["requires"]
    extras = project["optional-dependencies"]
    named = [*project["dependencies"], *extras["digits"], *extras["plan"], *extras["test"]]
    named += built_with
    names = {plain(re.match(r"[\w.-]+", one)[0]) for one in named} - {"must-jax", "torch"}
    assert names <= pins((ROOT / "requirements.lock").read_text()).keys(), WRITE


def test_every_locked_package_has_hashes_and_no_place_to_be_had_from():
    text = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"^(?=[\w])", text, flags=re.MULTILINE)[1:]
    assert len(entries) == len(pins(text)) > 50
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)
    assert "://" not in text
    assert not re.search(r"^\s*--(?!hash=)", text, re.MULTILINE)
