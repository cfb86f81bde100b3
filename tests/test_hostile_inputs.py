"""Damaged and hostile files, a few hundred of what tools/fuzz_inputs.py makes by the thousand."""

import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from must_jax.data.decode import FORMATS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from fuzz import families, images  # noqa: E402
from fuzz.worker import run_cases  # noqa: E402

PATHS = os.pathsep.join(map(str, (ROOT, ROOT / "tools", ROOT / "tests")))
CASES = {"checkpoints": 110, "converted": 56, "images": 161, "runs": 80, "texts": 180}


@pytest.mark.multiprocess
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch, which makes the whole files
@pytest.mark.parametrize("name", families.FAMILIES)
def test_no_file_does_harm(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", PATHS)
    # JAX would write to it, which no case may.
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    fine = families.FAMILIES[name].fine
    found = list(families.outcomes(name, range(CASES[name]), seed=1, folder=tmp_path))
    assert [one for one in found if one.kind not in fine] == []
    # Neither are all refused, nor is nothing.
    assert {one.kind for one in found} >= {fine[0], fine[1]}


def test_all_formats_are_damaged_and_the_usual_ones_by_the_thousand():
    readers = [Image.registered_extensions()[f".{suffix}"] for suffix in images.FORMATS]
    assert set(readers) == set(FORMATS)
    usual = sum(name in ("JPEG", "PNG", "WEBP", "BMP", "GIF") for name in readers)
    cases = families.FAMILIES["images"].cases_in_all
    # Of forty one is a bomb, and of a hundred some are no files.
    assert usual / len(readers) * cases * (39 / 40) * 0.95 > 2000


@pytest.mark.multiprocess
@pytest.mark.slow
def test_what_harms_is_told(monkeypatch):
    """The watch over the cases sees each kind of harm: it is no test that can't fail."""
    monkeypatch.setenv("PYTHONPATH", PATHS)
    found = run_cases("harm:Harm", {}, indices=range(6), seed=0, memory=256 * 2**20, seconds=3)
    kinds = {one.what: one.kind for one in found}
    assert kinds == {
        "exits": "crashed",
        "hangs": "hung",
        "takes memory": "traceback",
        "raises": "traceback",
        "writes elsewhere": "reached out",
        "runs a program": "reached out",
    }
