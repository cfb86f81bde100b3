"""The table in docs/benchmarks.md, from the recipes and from the architectures."""

import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LINES = (ROOT / "docs" / "benchmarks.md").read_text().splitlines()
ROWS = [line.strip("| ").split(" | ") for line in LINES if line.startswith("| `") and ".py" in line]
# Side of a patch, width, blocks.
MODELS = {"ViT-B/16": (16, 768, 12), "ViT-L/14": (14, 1024, 24)}


def config_of(name):
    file, _, model = name.partition(":")
    spec = importlib.util.spec_from_file_location("recipe", ROOT / "configs" / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(model or "b16")


def forward_flops(patch_size, width, depth):
    """Of one image of 224 pixels: two for each multiplication of a weight or of attention."""
    patches = (224 // patch_size) ** 2
    tokens = patches + 1
    weights = 12 * width**2  # query, key, value and output; the MLP's two, four widths wide
    attention = 2 * tokens * width  # scores, and what they weigh
    embedding = patches * 3 * patch_size**2 * width
    return 2 * (embedding + depth * tokens * (weights + attention))


def number(text):
    return 0.0 if text == "-" else float(text.replace(",", ""))


def test_the_table_has_the_14_published_recipes():
    assert len({row[0] for row in ROWS}) == len(ROWS) == 14


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip("`"))
def test_a_row_is_its_config(row):
    name, model, zeroshot, adapted, images, _, steps, flops = row
    config = config_of(name.strip("`"))
    assert config.checkpoint == {"B": "checkpoints/vit_b16", "L": "checkpoints/vit_l14"}[model[4]]
    assert (number(zeroshot), number(adapted)) == (
        config.expected.zeroshot,
        config.expected.adapted,
    )
    expected_steps = config.epochs * (int(number(images)) // config.batch_size)
    assert number(steps) == expected_steps
    total = 4 * forward_flops(*MODELS[model]) * expected_steps * config.batch_size
    assert flops == f"{total:.1e}".replace("e+", "e")


def test_flops_are_those_of_the_whole_models():
    """The roundings in the text."""
    assert f"{forward_flops(*MODELS['ViT-B/16']):.3g}" == "3.51e+10"
    assert f"{forward_flops(*MODELS['ViT-L/14']):.3g}" == "1.62e+11"
    assert 0.24 < forward_flops(32, 768, 12) / forward_flops(16, 768, 12) < 0.26


def test_every_config_of_a_benchmark_is_in_the_table():
    recipes = {p.name for p in (ROOT / "configs").glob("*.py") if "recipe(" in p.read_text()}
    assert {row[0].strip("`").partition(":")[0] for row in ROWS} == recipes
