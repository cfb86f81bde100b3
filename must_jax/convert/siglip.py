"""Hugging Face's SiglipModel: its table, and its architecture from `config.json`.

SigLIP 2 of a fixed resolution is saved as a SiglipModel too.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from must_jax.convert.fields import positive, read_json, side
from must_jax.convert.hugging_face import (
    CONFIG,
    blocks,
    image_statistics,
    tower_config,
    tower_fields,
)
from must_jax.convert.layout import Layout, Rule, norm
from must_jax.convert.source import SourceCheckpoint, logit_scale, scalar
from must_jax.convert.transforms import Transform, out_kernel, patches, transpose
from must_jax.convert.weights import HUGGING_FACE_NAMES, open_weights
from must_jax.errors import UserError
from must_jax.models.spec import ClipSpec, TextSpec, TowerSpec, VisionSpec

# Why SigLIP 2's other kind, whose config.json has model_type "siglip2", is refused.
NAFLEX = (
    "model_type 'siglip2' is a SigLIP 2 of the NaFlex kind, whose images have no fixed size; use "
    "one of a fixed resolution, such as google/siglip2-base-patch16-224"
)

# What transformers assumes of a field that config.json leaves out.
_TOWER_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
_VISION_DEFAULTS = _TOWER_DEFAULTS | {
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "vision_use_head": True,
}
_TEXT_DEFAULTS = _TOWER_DEFAULTS | {"vocab_size": 32000, "max_position_embeddings": 64}
_MEAN = _STD = (0.5, 0.5, 0.5)

# What config.json calls an activation, and what the models here call it.
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "quick_gelu": "quick_gelu"}


def _part(index: int) -> Transform:
    """Part 0, 1 or 2 (query, key or value) of rows (3W, ...) to (..., heads, head width)."""

    def to_param(x: np.ndarray, spec: TowerSpec) -> np.ndarray:
        rows = x.reshape(3, spec.width, -1)[index]
        kernel = rows.T.reshape(-1, spec.num_heads, spec.width // spec.num_heads)
        return kernel if x.ndim == 2 else kernel[0]

    def to_source(x: np.ndarray, spec: TowerSpec) -> np.ndarray:
        return x.reshape(-1) if x.ndim == 2 else x.reshape(-1, spec.width).T

    return Transform(to_param, to_source)


def _attention_pool(path: str, source: str) -> tuple[Rule, ...]:
    rules = []
    for index, name in enumerate(("query", "key", "value")):
        weight, bias = (f"{source}.attention.in_proj_{kind}" for kind in ("weight", "bias"))
        rules.append(Rule(f"{path}/{name}/kernel", (weight,), "3W W", _part(index)))
        rules.append(Rule(f"{path}/{name}/bias", (bias,), "3W", _part(index)))
    return (
        Rule(f"{path}/probe", (f"{source}.probe",), "1 1 W"),
        *rules,
        Rule(f"{path}/out/kernel", (f"{source}.attention.out_proj.weight",), "W W", out_kernel),
        Rule(f"{path}/out/bias", (f"{source}.attention.out_proj.bias",), "W"),
        *norm(f"{path}/ln", f"{source}.layernorm"),
        Rule(f"{path}/mlp/fc1/kernel", (f"{source}.mlp.fc1.weight",), "M W", transpose),
        Rule(f"{path}/mlp/fc1/bias", (f"{source}.mlp.fc1.bias",), "M"),
        Rule(f"{path}/mlp/fc2/kernel", (f"{source}.mlp.fc2.weight",), "W M", transpose),
        Rule(f"{path}/mlp/fc2/bias", (f"{source}.mlp.fc2.bias",), "W"),
    )


_VISION, _TEXT = "vision_model.embeddings", "text_model.embeddings"
LAYOUT = Layout(
    name="Hugging Face SiglipModel",
    rules=(
        Rule(
            "vision/patch_embed/kernel",
            (f"{_VISION}.patch_embedding.weight",),
            "W 3 P P",
            patches,
        ),
        Rule("vision/patch_embed/bias", (f"{_VISION}.patch_embedding.bias",), "W"),
        Rule("vision/pos_embed", (f"{_VISION}.position_embedding.weight",), "N W"),
        *blocks("vision", "vision_model"),
        *norm("vision/pool/ln_post", "vision_model.post_layernorm"),
        *_attention_pool("vision/pool", "vision_model.head"),
        Rule("text/token_embed", (f"{_TEXT}.token_embedding.weight",), "V W"),
        Rule("text/pos_embed", (f"{_TEXT}.position_embedding.weight",), "T W"),
        *blocks("text", "text_model"),
        *norm("text/ln_final", "text_model.final_layer_norm"),
        Rule("text/proj", ("text_model.head.weight",), "E W", transpose),
        Rule("text/proj_bias", ("text_model.head.bias",), "E"),
    ),
    # The bias is the same for all classes: their softmax does without it, an export doesn't.
    scalars=("logit_scale", "logit_bias"),
    scalar_shape=(1,),
    ignored=(f"{_VISION}.position_ids", f"{_TEXT}.position_ids"),
)


def read_spec(folder: Path) -> ClipSpec:
    """The spec that the configuration files of a folder describe.

    The logit scale, which they don't tell, is 1. Fields that are absent have transformers'
    defaults. Where patches don't fill the image, as 27 of 14 pixels don't fill 384, the image is
    as large as the patches: the pixels beyond reach no patch.

    Raises:
      UserError: a file is damaged, or describes no SigLIP whose embeddings are pooled.
    """
    config = read_json(folder / CONFIG)
    where = str(folder / CONFIG)
    in_vision, in_text = f"{where}: vision_config", f"{where}: text_config"
    vision = tower_config(config, "vision_config", defaults=_VISION_DEFAULTS, where=where)
    text = tower_config(config, "text_config", defaults=_TEXT_DEFAULTS, where=where)
    if vision["num_channels"] != 3:
        raise UserError(f"{in_vision}: num_channels is {vision['num_channels']!r}, expected 3")
    if vision["vision_use_head"] is not True:
        raise UserError(f"{in_vision}: without vision_use_head there are no image embeddings")
    image, patch = (side(vision, name, where=in_vision) for name in ("image_size", "patch_size"))
    if image < patch:
        raise UserError(f"{in_vision}: image_size {image} is less than patch_size {patch}")
    width = positive(vision, "hidden_size", where=in_vision)
    text_width = positive(text, "hidden_size", where=in_text)
    projected = positive({"projection_size": text_width} | text, "projection_size", where=in_text)
    if projected != width:
        raise UserError(
            f"{where}: texts are projected to {projected}, images pooled to {width}; expected the "
            "same (text_config's projection_size, vision_config's hidden_size)"
        )
    return ClipSpec(
        vision=VisionSpec(
            **tower_fields(vision, activations=ACTIVATIONS, where=in_vision),
            image_size=image // patch * patch,
            patch_size=patch,
            pooling="attention",
        ),
        text=TextSpec(
            **tower_fields(text, activations=ACTIVATIONS, where=in_text),
            vocab_size=positive(text, "vocab_size", where=in_text),
            context_length=positive(text, "max_position_embeddings", where=in_text),
            eot_token_id=None,
            pooling="last_token",
            is_causal=False,
            proj_bias=True,
        ),
        embed_dim=width,
        logit_scale=1.0,
        **image_statistics(folder, mean=_MEAN, std=_STD),
    )


def open_folder(folder: Path) -> SourceCheckpoint:
    """Opens a folder whose `config.json` has `model_type` "siglip".

    Raises:
      UserError: its configuration or its weights are missing, damaged, or no SigLIP.
    """
    spec = read_spec(folder)
    tensors = open_weights(folder, names=HUGGING_FACE_NAMES)
    where = str(folder)
    scale, bias = logit_scale(tensors, where=where), scalar(tensors, "logit_bias", where=where)
    if not math.isfinite(bias):
        raise UserError(f"{where}: logit_bias is {bias}; the file is damaged")
    spec = dataclasses.replace(spec, logit_scale=scale, logit_bias=bias)
    return SourceCheckpoint(layout=LAYOUT, tensors=tensors, spec=spec)
