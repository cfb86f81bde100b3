"""Writes a CLIP in the folder layout of Hugging Face's `CLIPModel`."""

import json
import math
import pathlib
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from digits.model import Params
from must_jax.exporting.hugging_face import preprocessor_config
from must_jax.models.spec import ClipSpec, TowerSpec


def _norm(prefix: str, norm: Params) -> dict[str, np.ndarray]:
    return {f"{prefix}.weight": norm["scale"], f"{prefix}.bias": norm["bias"]}


def _block(prefix: str, block: Params) -> dict[str, np.ndarray]:
    """One layer's tensors, torch's way: (out, in) matrices, query, key and value apart."""
    width = block["ln_1"]["scale"].shape[0]
    tensors = {
        **_norm(f"{prefix}.layer_norm1", block["ln_1"]),
        **_norm(f"{prefix}.layer_norm2", block["ln_2"]),
    }
    qkv = block["attn"]["qkv"]
    for index, name in enumerate(["q_proj", "k_proj", "v_proj"]):
        kernel = qkv["kernel"][:, index].reshape(width, width)
        tensors[f"{prefix}.self_attn.{name}.weight"] = kernel.T
        tensors[f"{prefix}.self_attn.{name}.bias"] = qkv["bias"][index].reshape(width)
    out = block["attn"]["out"]
    tensors[f"{prefix}.self_attn.out_proj.weight"] = out["kernel"].reshape(width, width).T
    tensors[f"{prefix}.self_attn.out_proj.bias"] = out["bias"]
    for name in ["fc1", "fc2"]:
        tensors[f"{prefix}.mlp.{name}.weight"] = block["mlp"][name]["kernel"].T
        tensors[f"{prefix}.mlp.{name}.bias"] = block["mlp"][name]["bias"]
    return tensors


def _tree_at(tree: Any, index: int) -> Any:
    if isinstance(tree, dict):
        return {name: _tree_at(child, index) for name, child in tree.items()}
    return tree[index]


def _blocks(prefix: str, blocks: Params, depth: int) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for index in range(depth):
        tensors |= _block(f"{prefix}.encoder.layers.{index}", _tree_at(blocks, index))
    return tensors


def clip_tensors(params: Params, *, spec: ClipSpec) -> dict[str, np.ndarray]:
    """Both towers' parameters under the names of Hugging Face's `CLIPModel`."""
    vision, text = params["vision"], params["text"]
    patch = spec.vision.patch_size
    patch_kernel = vision["patch_embed"]["kernel"].reshape(patch, patch, 3, spec.vision.width)
    return {
        "logit_scale": np.asarray(math.log(spec.logit_scale)),
        "vision_model.embeddings.class_embedding": vision["class_embed"],
        "vision_model.embeddings.patch_embedding.weight": patch_kernel.transpose(3, 2, 0, 1),
        "vision_model.embeddings.position_embedding.weight": vision["pos_embed"],
        **_norm("vision_model.pre_layrnorm", vision["ln_pre"]),
        **_blocks("vision_model", vision["blocks"], spec.vision.depth),
        **_norm("vision_model.post_layernorm", vision["ln_post"]),
        "visual_projection.weight": vision["proj"].T,
        "text_model.embeddings.token_embedding.weight": text["token_embed"],
        "text_model.embeddings.position_embedding.weight": text["pos_embed"],
        **_blocks("text_model", text["blocks"], spec.text.depth),
        **_norm("text_model.final_layer_norm", text["ln_final"]),
        "text_projection.weight": text["proj"].T,
    }


def _tower_config(spec: TowerSpec, embed_dim: int) -> dict[str, Any]:
    return {
        "hidden_size": spec.width,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.num_heads,
        "intermediate_size": spec.mlp_dim,
        "hidden_act": spec.activation,
        "layer_norm_eps": spec.layer_norm_eps,
        "projection_dim": embed_dim,
    }


def clip_config(spec: ClipSpec) -> dict[str, Any]:
    """The `config.json` of a `CLIPModel`; the start token's id is one below the end token's."""
    end = spec.text.eot_token_id
    assert end is not None
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": spec.embed_dim,
        "logit_scale_init_value": math.log(spec.logit_scale),
        "vision_config": {
            "model_type": "clip_vision_model",
            **_tower_config(spec.vision, spec.embed_dim),
            "image_size": spec.vision.image_size,
            "patch_size": spec.vision.patch_size,
        },
        "text_config": {
            "model_type": "clip_text_model",
            **_tower_config(spec.text, spec.embed_dim),
            "vocab_size": spec.text.vocab_size,
            "max_position_embeddings": spec.text.context_length,
            "bos_token_id": end - 1,
            "eos_token_id": end,
            "pad_token_id": end,
        },
    }


def write_clip(folder: pathlib.Path, params: Params, *, spec: ClipSpec) -> None:
    """Writes weights (float16) and configurations beside the tokenizer's files."""
    tensors = {
        name: np.ascontiguousarray(tensor, np.float16)
        for name, tensor in clip_tensors(params, spec=spec).items()
    }
    # A half-precision ln(100) would make the scale 99.9: this one stays as it is.
    tensors["logit_scale"] = np.asarray(math.log(spec.logit_scale), np.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name, values in [
        ("config.json", clip_config(spec)),
        ("preprocessor_config.json", preprocessor_config(spec)),
    ]:
        (folder / name).write_text(json.dumps(values, indent=2) + "\n")
