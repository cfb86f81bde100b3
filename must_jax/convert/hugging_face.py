"""Hugging Face's CLIPModel: its table, and its architecture from `config.json`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from must_jax.convert.fields import (
    OPENAI_MEAN,
    OPENAI_STD,
    image_and_patch,
    number,
    positive,
    read_json,
    statistics,
)
from must_jax.convert.layout import Layout, Rule, norm
from must_jax.convert.source import SourceCheckpoint, logit_scale
from must_jax.convert.transforms import out_kernel, patches, qkv_bias, qkv_kernel, transpose
from must_jax.convert.weights import HUGGING_FACE_NAMES, open_weights
from must_jax.errors import UserError
from must_jax.models.spec import ClipSpec, TextSpec, VisionSpec

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"

# What transformers assumes of a field that config.json leaves out.
_TOWER_DEFAULTS: dict[str, Any] = {
    "num_hidden_layers": 12,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_VISION_DEFAULTS: dict[str, Any] = _TOWER_DEFAULTS | {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "num_channels": 3,
}
_TEXT_DEFAULTS: dict[str, Any] = _TOWER_DEFAULTS | {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}
_PROJECTION_DIM = 512

# What config.json calls an activation, and what the models here call it.
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu"}

# Configurations written before the end token was recorded carry this id, which is no end token.
LEGACY_EOS = 2


def blocks(tower: str, source: str) -> tuple[Rule, ...]:
    """The transformer of a tower below `source`, as transformers names its layers."""
    path, layer = f"{tower}/blocks", f"{source}.encoder.layers.*"
    qkv = [f"{layer}.self_attn.{letter}_proj" for letter in "qkv"]
    out = f"{layer}.self_attn.out_proj"
    return (
        *norm(f"{path}/ln_1", f"{layer}.layer_norm1"),
        Rule(f"{path}/attn/qkv/kernel", tuple(f"{x}.weight" for x in qkv), "W W", qkv_kernel),
        Rule(f"{path}/attn/qkv/bias", tuple(f"{x}.bias" for x in qkv), "W", qkv_bias),
        Rule(f"{path}/attn/out/kernel", (f"{out}.weight",), "W W", out_kernel),
        Rule(f"{path}/attn/out/bias", (f"{out}.bias",), "W"),
        *norm(f"{path}/ln_2", f"{layer}.layer_norm2"),
        Rule(f"{path}/mlp/fc1/kernel", (f"{layer}.mlp.fc1.weight",), "M W", transpose),
        Rule(f"{path}/mlp/fc1/bias", (f"{layer}.mlp.fc1.bias",), "M"),
        Rule(f"{path}/mlp/fc2/kernel", (f"{layer}.mlp.fc2.weight",), "W M", transpose),
        Rule(f"{path}/mlp/fc2/bias", (f"{layer}.mlp.fc2.bias",), "W"),
    )


_VISION, _TEXT = "vision_model.embeddings", "text_model.embeddings"
LAYOUT = Layout(
    name="Hugging Face CLIPModel",
    rules=(
        Rule(
            "vision/patch_embed/kernel",
            (f"{_VISION}.patch_embedding.weight",),
            "W 3 P P",
            patches,
        ),
        Rule("vision/class_embed", (f"{_VISION}.class_embedding",), "W"),
        Rule("vision/pos_embed", (f"{_VISION}.position_embedding.weight",), "T W"),
        *norm("vision/ln_pre", "vision_model.pre_layrnorm"),
        *blocks("vision", "vision_model"),
        *norm("vision/ln_post", "vision_model.post_layernorm"),
        Rule("vision/proj", ("visual_projection.weight",), "E W", transpose),
        Rule("text/token_embed", (f"{_TEXT}.token_embedding.weight",), "V W"),
        Rule("text/pos_embed", (f"{_TEXT}.position_embedding.weight",), "T W"),
        *blocks("text", "text_model"),
        *norm("text/ln_final", "text_model.final_layer_norm"),
        Rule("text/proj", ("text_projection.weight",), "E W", transpose),
    ),
    ignored=(f"{_VISION}.position_ids", f"{_TEXT}.position_ids"),
)


def tower_config(
    config: Mapping[str, Any], name: str, *, defaults: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """The fields of `vision_config` or `text_config`, over what transformers assumes.

    Raises:
      UserError: it is no object.
    """
    given = config.get(name) or {}
    if not isinstance(given, dict):
        raise UserError(f"{where}: {name} is no object")
    return dict(defaults) | {field: value for field, value in given.items() if value is not None}


def _clip_tower_config(
    config: Mapping[str, Any], name: str, *, defaults: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """`tower_config`, or what old files of CLIPs repeat it as.

    transformers lets the repetition win, with defaults for what it leaves out.
    """
    fields = tower_config(config, name, defaults=defaults, where=where)
    again = f"{name}_dict"
    if config.get(again) is None:
        return fields
    return fields | tower_config(config, again, defaults=defaults, where=where)


def tower_fields(
    config: Mapping[str, Any], *, activations: Mapping[str, str], where: str
) -> dict[str, Any]:
    """What a `TowerSpec` has, from the fields of a tower's configuration.

    Args:
      config: the fields.
      activations: what `hidden_act` may be, and the name here for it.
      where: file and tower, for messages.

    Raises:
      UserError: a field is out of its range, or not supported.
    """
    width = positive(config, "hidden_size", where=where)
    heads = positive(config, "num_attention_heads", where=where)
    activation = config["hidden_act"]
    if not isinstance(activation, str) or activation not in activations:
        raise UserError(
            f"{where}: hidden_act {activation!r} is not supported, only {' and '.join(activations)}"
        )
    if width % heads:
        raise UserError(
            f"{where}: hidden_size {width} is not a multiple of num_attention_heads {heads}"
        )
    return {
        "width": width,
        "depth": positive(config, "num_hidden_layers", where=where),
        "num_heads": heads,
        "mlp_dim": positive(config, "intermediate_size", where=where),
        "activation": activations[activation],
        "layer_norm_eps": number(config, "layer_norm_eps", where=where),
    }


def image_statistics(
    folder: Path,
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> dict[str, Any]:
    """`image_mean` and `image_std` of the folder's image processor; the given ones without it.

    It is in `processor_config.json`, as transformers 5 writes it and prefers it, or else in
    `preprocessor_config.json`.

    Raises:
      UserError: the file is damaged, or pixels are not brought to 0..1 and normalised.
    """
    config: Any = None
    for name, key in (("processor_config.json", "image_processor"), (PREPROCESSOR, None)):
        file = folder / name
        if config is None and file.is_file():
            config, where = read_json(file), str(file)
            config = config.get(key) if key else config
    if config is None:
        return {"image_mean": mean, "image_std": std}
    if not isinstance(config, dict):
        raise UserError(f"{where}: image_processor is no object")
    for field, plain in (("do_normalize", True), ("do_rescale", True), ("rescale_factor", 1 / 255)):
        if config.get(field) not in (None, plain):
            raise UserError(f"{where}: {field} is {config[field]!r}, supported is {plain!r}")
    return {
        "image_mean": statistics(
            config, "image_mean", default=mean, is_positive=False, where=where
        ),
        "image_std": statistics(config, "image_std", default=std, is_positive=True, where=where),
    }


def read_spec(folder: Path) -> ClipSpec:
    """The spec that the configuration files of a folder describe.

    The logit scale, which they don't tell, is 1.

    Fields that are absent have transformers' defaults; absent image statistics are OpenAI's.

    Raises:
      UserError: a file is damaged, or describes no CLIP with a ViT.
    """
    config = read_json(folder / CONFIG)
    where = str(folder / CONFIG)
    vision = _clip_tower_config(config, "vision_config", defaults=_VISION_DEFAULTS, where=where)
    text = _clip_tower_config(config, "text_config", defaults=_TEXT_DEFAULTS, where=where)
    if vision["num_channels"] != 3:
        raise UserError(f"{where}: num_channels is {vision['num_channels']!r}, expected 3")
    eos = text["eos_token_id"]
    if type(eos) is not int:
        raise UserError(f"{where}: eos_token_id is {eos!r}, expected one integer")
    in_vision, in_text = f"{where}: vision_config", f"{where}: text_config"
    projection = {"projection_dim": _PROJECTION_DIM} | config
    return ClipSpec(
        vision=VisionSpec(
            **tower_fields(vision, activations=ACTIVATIONS, where=in_vision),
            **image_and_patch(vision, where=in_vision),
        ),
        text=TextSpec(
            **tower_fields(text, activations=ACTIVATIONS, where=in_text),
            vocab_size=positive(text, "vocab_size", where=in_text),
            context_length=positive(text, "max_position_embeddings", where=in_text),
            eot_token_id=None if eos == LEGACY_EOS else eos,
        ),
        embed_dim=positive(projection, "projection_dim", where=where),
        logit_scale=1.0,
        **image_statistics(folder, mean=OPENAI_MEAN, std=OPENAI_STD),
    )


def open_folder(folder: Path) -> SourceCheckpoint:
    """Opens a folder whose `config.json` has `model_type` "clip".

    Raises:
      UserError: its configuration or its weights are missing, damaged, or no CLIP with a ViT.
    """
    spec = read_spec(folder)
    tensors = open_weights(folder, names=HUGGING_FACE_NAMES)
    scale = logit_scale(tensors, where=str(folder))
    spec = dataclasses.replace(spec, logit_scale=scale)
    return SourceCheckpoint(layout=LAYOUT, tensors=tensors, spec=spec)
