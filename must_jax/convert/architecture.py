"""The architecture of a checkpoint: from Hugging Face's configuration, or from OpenAI's shapes."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from must_jax.convert.safetensors_files import read_json
from must_jax.errors import UserError
from must_jax.models.layers import ACTIVATIONS
from must_jax.models.spec import ClipSpec, TextSpec, VisionSpec

# The statistics of OpenAI's training images (Radford et al., 2021; published with the weights).
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

# What transformers assumes of a field that config.json leaves out.
_TOWER_DEFAULTS = {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_VISION_DEFAULTS = _TOWER_DEFAULTS | {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "num_channels": 3,
}
_TEXT_DEFAULTS = _TOWER_DEFAULTS | {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}
_PROJECTION_DIM = 512

# Configurations written before the end token was recorded carry this id, which is no end token.
_LEGACY_EOS = 2

# OpenAI's towers have one head for every 64 units; no shape tells.
_HEAD_DIM = 64


def _tower_config(
    config: Mapping[str, Any], name: str, defaults: dict[str, Any], *, where: str
) -> dict[str, Any]:
    fields = dict(defaults)
    # Old files repeat a tower below `..._dict`, and transformers lets that one win.
    for key in (name, f"{name}_dict"):
        given = config.get(key) or {}
        if not isinstance(given, dict):
            raise UserError(f"{where}: {key} is no object")
        fields |= {field: value for field, value in given.items() if value is not None}
    return fields


def _positive(config: Mapping[str, Any], name: str, *, where: str) -> int:
    value = config[name]
    if type(value) is not int or value < 1:
        raise UserError(f"{where}: {name} is {value!r}, expected a positive integer")
    return value


def _square(value: Any, *, where: str) -> int:
    sides = list(value) if isinstance(value, list) else [value]
    if not all(type(side) is int and side > 0 for side in sides) or len(set(sides)) != 1:
        raise UserError(f"{where} is {value}, but only square images and patches are supported")
    return sides[0]


def _tower_fields(config: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    width = _positive(config, "hidden_size", where=where)
    heads = _positive(config, "num_attention_heads", where=where)
    if config["hidden_act"] not in list(ACTIVATIONS):
        raise UserError(
            f"{where}: hidden_act {config['hidden_act']!r} is not supported, only "
            + " and ".join(ACTIVATIONS)
        )
    if width % heads:
        raise UserError(
            f"{where}: hidden_size {width} is not a multiple of num_attention_heads {heads}"
        )
    if not isinstance(config["layer_norm_eps"], float):
        raise UserError(
            f"{where}: layer_norm_eps is {config['layer_norm_eps']!r}, expected a number"
        )
    return {
        "width": width,
        "depth": _positive(config, "num_hidden_layers", where=where),
        "num_heads": heads,
        "mlp_dim": _positive(config, "intermediate_size", where=where),
        "activation": config["hidden_act"],
        "layer_norm_eps": config["layer_norm_eps"],
    }


def _statistics(
    folder: Path, key: str, default: tuple[float, float, float]
) -> tuple[float, float, float]:
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return default
    values = read_json(file).get(key, default)
    if (
        not isinstance(values, (list, tuple))
        or len(values) != 3
        or not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)
        or (key == "image_std" and min(values) <= 0)
    ):
        raise UserError(f"{file}: {key} is {values!r}, expected one number a colour")
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def hugging_face_spec(folder: Path, *, logit_scale: float) -> ClipSpec:
    """The spec that `config.json` and `preprocessor_config.json` of a folder describe.

    Fields that are absent have transformers' defaults; absent image statistics are OpenAI's.

    Raises:
      UserError: a file is damaged, or describes anything but a CLIP with a ViT.
    """
    file = folder / "config.json"
    config = read_json(file)
    if config.get("model_type") != "clip":
        raise UserError(
            f"{file}: model_type is {config.get('model_type')!r}; only 'clip' (Hugging Face's "
            "CLIPModel) can be converted"
        )
    vision = _tower_config(config, "vision_config", _VISION_DEFAULTS, where=str(file))
    text = _tower_config(config, "text_config", _TEXT_DEFAULTS, where=str(file))
    if vision["num_channels"] != 3:
        raise UserError(f"{file}: num_channels is {vision['num_channels']!r}, expected 3")
    image_size = _square(vision["image_size"], where=f"{file}: image_size")
    patch_size = _square(vision["patch_size"], where=f"{file}: patch_size")
    if image_size % patch_size:
        raise UserError(
            f"{file}: image_size {image_size} is not a multiple of patch_size {patch_size}"
        )
    eos = text["eos_token_id"]
    if type(eos) is not int:
        raise UserError(f"{file}: eos_token_id is {eos!r}, expected one integer")
    return ClipSpec(
        vision=VisionSpec(
            **_tower_fields(vision, where=f"{file}: vision_config"),
            image_size=image_size,
            patch_size=patch_size,
        ),
        text=TextSpec(
            **_tower_fields(text, where=f"{file}: text_config"),
            vocab_size=_positive(text, "vocab_size", where=f"{file}: text_config"),
            context_length=_positive(text, "max_position_embeddings", where=f"{file}: text_config"),
            eot_token_id=None if eos == _LEGACY_EOS else eos,
        ),
        embed_dim=_positive(
            {"projection_dim": _PROJECTION_DIM} | config, "projection_dim", where=str(file)
        ),
        logit_scale=logit_scale,
        image_mean=_statistics(folder, "image_mean", OPENAI_MEAN),
        image_std=_statistics(folder, "image_std", OPENAI_STD),
    )


def count_blocks(keys: Iterable[str], prefix: str) -> int:
    """One more than the largest number that follows `prefix` in the keys."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return max((int(m[1]) + 1 for key in keys if (m := pattern.match(key))), default=0)


def openai_spec(
    tensors: Mapping[str, np.ndarray], *, activation: str, logit_scale: float, where: str
) -> ClipSpec | None:
    """The spec that the shapes of OpenAI's tensors tell; None where a tensor that tells it lacks.

    Raises:
      UserError: the shapes contradict each other.
    """
    try:
        width, _, _, patch_size = tensors["visual.conv1.weight"].shape
        tokens, _ = tensors["visual.positional_embedding"].shape
        _, embed_dim = tensors["visual.proj"].shape
        context_length, text_width = tensors["positional_embedding"].shape
        vocab_size, _ = tensors["token_embedding.weight"].shape
        vision_mlp, _ = tensors["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape
        text_mlp, _ = tensors["transformer.resblocks.0.mlp.c_fc.weight"].shape
    except KeyError:
        return None
    except ValueError as error:
        raise UserError(f"{where}: a weight has the wrong number of axes ({error})") from error
    grid = round((tokens - 1) ** 0.5)
    if grid**2 != tokens - 1:
        raise UserError(
            f"{where}: visual.positional_embedding has {tokens} rows, "
            "expected one more than a square"
        )
    heads = {w: max(1, w // _HEAD_DIM) for w in (width, text_width)}
    for w, count in heads.items():
        if w % count:
            raise UserError(f"{where}: width {w} is not a multiple of {_HEAD_DIM}, a head's width")
    return ClipSpec(
        vision=VisionSpec(
            width=width,
            depth=count_blocks(tensors, "visual.transformer.resblocks."),
            num_heads=heads[width],
            mlp_dim=vision_mlp,
            activation=activation,
            layer_norm_eps=1e-5,
            image_size=grid * patch_size,
            patch_size=patch_size,
        ),
        text=TextSpec(
            width=text_width,
            depth=count_blocks(tensors, "transformer.resblocks."),
            num_heads=heads[text_width],
            mlp_dim=text_mlp,
            activation=activation,
            layer_norm_eps=1e-5,
            vocab_size=vocab_size,
            context_length=context_length,
            eot_token_id=None,
        ),
        embed_dim=embed_dim,
        logit_scale=logit_scale,
        image_mean=OPENAI_MEAN,
        image_std=OPENAI_STD,
    )
