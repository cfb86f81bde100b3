"""What the published recipes in `configs/` have in common."""

import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from must_jax.config import default_config
from must_jax.errors import UserError

ASSETS = pathlib.Path(__file__).parent / "assets"


def recipe(
    dataset: str, *, model: str, models: Mapping[str, Mapping[str, Any]]
) -> ml_collections.ConfigDict:
    """The defaults with a data set's names and templates, and the fields that one model has.

    Args:
      dataset: a folder of `must_jax/assets`.
      model: what follows the colon of `--config=configs/FILE.py:MODEL`.
      models: fields, by their dotted names, of each model that there is.

    Raises:
      UserError: there is no such model.
    """
    if model not in models:
        raise UserError(f"configs/{dataset}.py has no model {model!r}; it has {', '.join(models)}")
    config = default_config()
    config.checkpoint = f"checkpoints/vit_{model}"
    config.dataset.class_names = str(ASSETS / dataset / "classes.tsv")
    config.dataset.templates = str(ASSETS / dataset / "templates.txt")
    config.update_from_flattened_dict(dict(models[model]))
    return config
