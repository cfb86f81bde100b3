"""OpenCLIP's folders: their tables, and the architecture from `open_clip_config.json`.

Fields and defaults are those of open_clip_torch 3.3 (`CLIPVisionCfg` and `CLIPTextCfg`).
"""

import dataclasses
import reprlib
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
from must_jax.convert.layout import Layout
from must_jax.convert.openai import rules
from must_jax.convert.source import SourceCheckpoint, logit_scale
from must_jax.convert.weights import (
    HUGGING_FACE_NAMES,
    OPEN_CLIP_NAMES,
    has_weights,
    open_weights,
)
from must_jax.errors import UserError
from must_jax.models.spec import ClipSpec, TextSpec, VisionSpec

CONFIG = "open_clip_config.json"

# What OpenCLIP assumes of a field that is left out; these are the fields that are read.
_MODEL_DEFAULTS: dict[str, Any] = {
    "embed_dim": None,
    "quick_gelu": False,
    "vision_cfg": {},
    "text_cfg": {},
}
_TOWER_DEFAULTS: dict[str, Any] = {"layers": 12, "mlp_ratio": 4.0, "norm_kwargs": None}
_VISION_DEFAULTS: dict[str, Any] = _TOWER_DEFAULTS | {
    "width": 768,
    "head_width": 64,
    "patch_size": 16,
    "image_size": 224,
}
_TEXT_DEFAULTS: dict[str, Any] = _TOWER_DEFAULTS | {
    "width": 512,
    "heads": 8,
    "context_length": 77,
    "vocab_size": 49408,
}

# Fields that change nothing here: of training, of a tower that isn't used, or told by the weights.
_HARMLESS = {
    "custom_text",
    "patch_dropout",
    "output_tokens",
    "n_queries",
    "attn_pooler_queries",
    "attn_pooler_heads",
    "timm_model_pretrained",
    "timm_pool",
    "timm_proj",
    "timm_proj_bias",
    "timm_drop",
    "timm_drop_path",
    "hf_tokenizer_name",
    "hf_model_pretrained",
    "hf_proj_type",
    "hf_pooler_type",
    "pad_id",
    "eos_id",
}

# Values, other than null and false, of fields that otherwise make another model.
_PLAIN = {
    "pos_embed_type": "learnable",
    "block_type": "default",
    "proj_type": "linear",
    "tokenizer_kwargs": {"clean": "lower"},
}
_VISION_PLAIN = _PLAIN | {"pool_type": "tok"}
_TEXT_PLAIN = _PLAIN | {"pool_type": "argmax"}

# What to do instead, where there is something.
_ADVICE = {
    "init_logit_bias": " (a SigLIP: use the folder of Hugging Face's model, such as "
    "google/siglip-base-patch16-224)",
}

_EPSILON: dict[str, Any] = {"eps": 1e-5}

_NAME = "OpenCLIP"
LAYOUT = Layout(name=_NAME, rules=rules(text=""), ignored=("attn_mask",))
# Where the config asks for `custom_text`, and as OpenCLIP's CustomTextCLIP saves.
CUSTOM_TEXT_LAYOUT = Layout(name=_NAME, rules=rules(text="text."), ignored=("text.attn_mask",))


def is_folder(folder: Path) -> bool:
    """Whether a folder is one of OpenCLIP's.

    One that holds a Hugging Face model too, as many on the hub, is taken as OpenCLIP's if weights
    under OpenCLIP's own names are there.
    """
    if not (folder / CONFIG).is_file():
        return False
    plain = (folder / "config.json").is_file() and has_weights(folder, names=HUGGING_FACE_NAMES)
    return has_weights(folder, names=OPEN_CLIP_NAMES) or not plain


def _fields(
    config: Any,
    name: str,
    *,
    defaults: Mapping[str, Any],
    plain: Mapping[str, Any],
    where: str,
) -> dict[str, Any]:
    """The fields of an object, over their defaults.

    Raises:
      UserError: it is no object, or has fields that make another model, all of them named.
    """
    if not isinstance(config, dict):
        raise UserError(f"{where}: {name} is no object")
    odd = [
        f"{field} is {reprlib.repr(value)}"
        + (f", supported is {plain[field]!r}" if field in plain else _ADVICE.get(field, ""))
        for field, value in config.items()
        if field not in defaults
        and field not in _HARMLESS
        and not (value is None or value is False or value == {})
        and not (field in plain and value == plain[field])
    ]
    if odd:
        raise UserError(
            f"{where}: {name} describes no plain CLIP: {'; '.join(odd)}; supported are OpenCLIP's "
            "own ViT with a class token and its causal text transformer"
        )
    return dict(defaults) | {field: value for field, value in config.items() if value is not None}


def _tower(config: Mapping[str, Any], *, heads: int, activation: str, where: str) -> dict[str, Any]:
    width = positive(config, "width", where=where)
    norm_kwargs = config["norm_kwargs"] or _EPSILON
    if not isinstance(norm_kwargs, dict) or norm_kwargs.keys() != {"eps"}:
        raise UserError(f"{where}: norm_kwargs is {norm_kwargs!r}, supported is eps alone")
    return {
        "width": width,
        "depth": positive(config, "layers", where=where),
        "num_heads": heads,
        # Rounded down, as OpenCLIP does.
        "mlp_dim": int(width * number(config, "mlp_ratio", where=where)),
        "activation": activation,
        "layer_norm_eps": number(norm_kwargs, "eps", where=f"{where}: norm_kwargs"),
    }


def _vision(config: Mapping[str, Any], *, activation: str, where: str) -> VisionSpec:
    if isinstance(config["layers"], list):
        raise UserError(f"{where}: layers is {config['layers']}, a ResNet; only ViTs are supported")
    width = positive(config, "width", where=where)
    head_width = positive(config, "head_width", where=where)
    if width % head_width:
        raise UserError(f"{where}: width {width} is not a multiple of head_width {head_width}")
    return VisionSpec(
        **_tower(config, heads=width // head_width, activation=activation, where=where),
        **image_and_patch(config, where=where),
    )


def _text(config: Mapping[str, Any], *, activation: str, where: str) -> TextSpec:
    width = positive(config, "width", where=where)
    heads = positive(config, "heads", where=where)
    if width % heads:
        raise UserError(f"{where}: width {width} is not a multiple of heads {heads}")
    return TextSpec(
        **_tower(config, heads=heads, activation=activation, where=where),
        vocab_size=positive(config, "vocab_size", where=where),
        context_length=positive(config, "context_length", where=where),
        eot_token_id=None,
    )


def read_spec(folder: Path) -> ClipSpec:
    """The spec that `open_clip_config.json` describes.

    Fields that are absent have OpenCLIP's defaults; absent image statistics are OpenAI's. The logit
    scale, which it doesn't tell, is 1.

    Raises:
      UserError: the file is damaged, or describes anything but a CLIP with plain towers.
    """
    where = str(folder / CONFIG)
    config = read_json(folder / CONFIG)
    model = _fields(
        config.get("model_cfg"), "model_cfg", defaults=_MODEL_DEFAULTS, plain={}, where=where
    )
    vision, text = (
        _fields(model[name], name, defaults=defaults, plain=plain, where=where)
        for name, defaults, plain in [
            ("vision_cfg", _VISION_DEFAULTS, _VISION_PLAIN),
            ("text_cfg", _TEXT_DEFAULTS, _TEXT_PLAIN),
        ]
    )
    if type(model["quick_gelu"]) is not bool:
        raise UserError(f"{where}: quick_gelu is {model['quick_gelu']!r}, expected true or false")
    activation = "quick_gelu" if model["quick_gelu"] else "gelu"
    preprocess = config.get("preprocess_cfg") or {}
    if not isinstance(preprocess, dict):
        raise UserError(f"{where}: preprocess_cfg is no object")
    return ClipSpec(
        vision=_vision(vision, activation=activation, where=f"{where}: vision_cfg"),
        text=_text(text, activation=activation, where=f"{where}: text_cfg"),
        embed_dim=positive(model, "embed_dim", where=where),
        logit_scale=1.0,
        image_mean=statistics(
            preprocess, "mean", default=OPENAI_MEAN, is_positive=False, where=where
        ),
        image_std=statistics(preprocess, "std", default=OPENAI_STD, is_positive=True, where=where),
    )


def open_folder(folder: Path) -> SourceCheckpoint:
    """Opens a folder with an `open_clip_config.json`.

    Raises:
      UserError: its configuration or its weights are missing, damaged, or no plain CLIP.
    """
    spec = read_spec(folder)
    tensors = open_weights(folder, names=OPEN_CLIP_NAMES + HUGGING_FACE_NAMES)
    layout = CUSTOM_TEXT_LAYOUT if any(key.startswith("text.") for key in tensors) else LAYOUT
    scale = logit_scale(tensors, where=str(folder))
    spec = dataclasses.replace(spec, logit_scale=scale)
    return SourceCheckpoint(layout=layout, tensors=tensors, spec=spec)
