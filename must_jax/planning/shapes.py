"""An experiment by its shapes alone: no images, no weights, and no checkpoint where told."""

import dataclasses
import os
import pathlib
import re
from typing import Any

import ml_collections

from must_jax import config as config_lib
from must_jax.class_names import ClassNames, read_class_names
from must_jax.convert import read_converted_spec
from must_jax.errors import UserError
from must_jax.experiment import Experiment
from must_jax.models import ClipSpec, TextSpec, VisionSpec

MAX_CLASSES = 10_000_000
TOWER: dict[str, Any] = {"activation": "quick_gelu", "layer_norm_eps": 1e-5}
# OpenAI's CLIP (Radford et al., 2021, table 20): patch, width, depth, heads, joint space.
MODELS = {
    "b32": (32, 768, 12, 12, 512),
    "b16": (16, 768, 12, 12, 512),
    "l14": (14, 1024, 24, 16, 768),
}
# Training images of the recipes, as the files in configs/ say.
NUM_IMAGES = {
    "caltech101": 3_060,
    "dtd": 3_760,
    "food101": 75_750,
    "gtsrb": 26_640,
    "imagenet": 1_281_167,
    "pets": 3_680,
    "sun397": 76_128,
}


def published_spec(model: str, *, image_size: int) -> ClipSpec:
    """The architecture of OpenAI's checkpoint, the text tower left out.

    Raises:
      UserError: there is no such model.
    """
    if model not in MODELS:
        raise UserError(f"--model={model} is not known; known are {', '.join(MODELS)}")
    patch, width, depth, heads, embed_dim = MODELS[model]
    vision = VisionSpec(
        image_size=image_size,
        patch_size=patch,
        width=width,
        depth=depth,
        num_heads=heads,
        mlp_dim=4 * width,
        **TOWER,
    )
    return without_text(vision, embed_dim=embed_dim)


def without_text(vision: VisionSpec, *, embed_dim: int) -> ClipSpec:
    """A checkpoint's architecture with as good as no text tower: steps don't run it."""
    sizes: dict[str, Any] = {"width": 1, "depth": 1, "num_heads": 1, "mlp_dim": 1}
    text = TextSpec(vocab_size=1, context_length=1, eot_token_id=None, **sizes, **TOWER)
    return ClipSpec(
        vision=vision,
        text=text,
        embed_dim=embed_dim,
        logit_scale=100.0,
        image_mean=(0.48145466, 0.4578275, 0.40821073),
        image_std=(0.26862954, 0.26130258, 0.27577711),
    )


def plan_experiment(
    config: ml_collections.ConfigDict, *, model: str | None = None, num_classes: int | None = None
) -> Experiment:
    """An experiment whose steps can be compiled, but not run.

    Args:
      config: as for a run.
      model: of `MODELS`; None: what `config.checkpoint` holds or, where that is not there, is
        named after (`vit_b16`).
      num_classes: None: those of the class names file.

    Raises:
      UserError: a field, the names, or the checkpoint are not usable.
    """
    config_lib.check_config(config)
    checkpoint = pathlib.Path(config.checkpoint).expanduser()
    named = re.fullmatch(r"vit_(\w+)", checkpoint.name)
    if model is None and not checkpoint.is_dir():
        if not named or named[1] not in MODELS:
            raise UserError(
                f"config.checkpoint {config.checkpoint} is not there; name its shapes with "
                f"--model={'|'.join(MODELS)}, or convert it"
            )
        model = named[1]
    if model is None:
        spec = read_converted_spec(checkpoint)
    else:
        spec = published_spec(model, image_size=config.image_size)
    if num_classes is None:
        classes = read_class_names(os.path.expanduser(config.dataset.class_names))
    elif not 1 <= num_classes <= MAX_CLASSES:
        raise UserError(f"--num_classes={num_classes} must be from 1 to {MAX_CLASSES}")
    else:
        classes = ClassNames(tuple((str(i),) for i in range(num_classes)))
    config_lib.check_patches(config, patch_size=spec.vision.patch_size)
    vision = dataclasses.replace(spec.vision, image_size=config.image_size)
    return Experiment(
        config=config,
        spec=dataclasses.replace(spec, vision=vision),
        clip_params={},
        tokenizer=None,
        classes=classes,
        templates=(),
    )


def count_images(config: ml_collections.ConfigDict, told: int | None) -> int:
    """Training images: as told, or of the recipe whose class names the config has.

    Raises:
      UserError: neither tells.
    """
    recipe = pathlib.Path(config.dataset.class_names).parent.name
    images = NUM_IMAGES.get(recipe) if told is None else told
    if images is None or images < 1:
        raise UserError("--num_images is missing or not positive; say how many train, for epochs")
    return images
