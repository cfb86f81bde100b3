"""OpenCLIP folders, and the published architectures in OpenCLIP's terms and Hugging Face's."""

import json

import torch
from clip_checkpoints import openai_state, write_tokenizer
from safetensors.torch import save_file

_TEXT_512 = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
_TEXT_768 = _TEXT_512 | {"width": 768, "heads": 12}
_TEXT_1024 = _TEXT_512 | {"width": 1024, "heads": 16, "layers": 24}

# `model_cfg` of open_clip_torch's model_configs/*.json.
OPEN_CLIP = {
    "ViT-B-32": {
        "embed_dim": 512,
        "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
        "text_cfg": _TEXT_512,
    },
    "ViT-B-16": {
        "embed_dim": 512,
        "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16},
        "text_cfg": _TEXT_512,
    },
    "ViT-L-14": {
        "embed_dim": 768,
        "vision_cfg": {"image_size": 224, "layers": 24, "width": 1024, "patch_size": 14},
        "text_cfg": _TEXT_768,
    },
    "ViT-L-14-336": {
        "embed_dim": 768,
        "vision_cfg": {"image_size": 336, "layers": 24, "width": 1024, "patch_size": 14},
        "text_cfg": _TEXT_768,
    },
    "ViT-H-14": {
        "embed_dim": 1024,
        "vision_cfg": {
            "image_size": 224,
            "layers": 32,
            "width": 1280,
            "head_width": 80,
            "patch_size": 14,
        },
        "text_cfg": _TEXT_1024,
    },
    "ViT-g-14": {
        "embed_dim": 1024,
        "vision_cfg": {
            "image_size": 224,
            "layers": 40,
            "width": 1408,
            "head_width": 88,
            "mlp_ratio": 4.3637,
            "patch_size": 14,
        },
        "text_cfg": _TEXT_1024,
    },
}


def _tower(layers, width, heads, mlp, **more):
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": mlp,
        **more,
    }


# The same in the terms of `config.json`; id 2 is in files from before the end token was recorded.
_OLD_END = {"eos_token_id": 2}
_HF_TEXT_512 = _tower(12, 512, 8, 2048, **_OLD_END)
_HF_TEXT_768 = _tower(12, 768, 12, 3072, **_OLD_END)
_HF_TEXT_1024 = _tower(24, 1024, 16, 4096, **_OLD_END)
HUGGING_FACE = {
    name: {
        "vision": _tower(*vision, patch_size=patch, image_size=336 if "336" in name else 224),
        "text": text,
        "projection_dim": embed_dim,
    }
    for name, vision, patch, text, embed_dim in [
        ("ViT-B-32", (12, 768, 12, 3072), 32, _HF_TEXT_512, 512),
        ("ViT-B-16", (12, 768, 12, 3072), 16, _HF_TEXT_512, 512),
        ("ViT-L-14", (24, 1024, 16, 4096), 14, _HF_TEXT_768, 768),
        ("ViT-L-14-336", (24, 1024, 16, 4096), 14, _HF_TEXT_768, 768),
        ("ViT-H-14", (32, 1280, 16, 5120), 14, _HF_TEXT_1024, 1024),
        ("ViT-g-14", (40, 1408, 16, 6144), 14, _HF_TEXT_1024, 1024),
    ]
}


def shape_config(name, *, activation, layers=None, vocab_size=49408):
    """An architecture as `make_clip` takes it and as `model_cfg`; with fewer layers if given."""
    hugging_face, open_clip = HUGGING_FACE[name], OPEN_CLIP[name]
    fewer = {} if layers is None else {"num_hidden_layers": layers}
    towers = {
        tower: hugging_face[tower] | fewer | {"hidden_act": activation}
        for tower in ("vision", "text")
    }
    towers["text"] |= {"vocab_size": vocab_size, "bos_token_id": vocab_size - 2}
    config = hugging_face | towers

    fewer = {} if layers is None else {"layers": layers}
    model_cfg = open_clip | {
        "vision_cfg": open_clip["vision_cfg"] | fewer,
        "text_cfg": open_clip["text_cfg"] | fewer | {"vocab_size": vocab_size},
    }
    # False is what an absent field means.
    return config, model_cfg | ({"quick_gelu": True} if activation == "quick_gelu" else {})


def open_clip_state(model, *, custom_text=False):
    """The weights of a `CLIPModel` under OpenCLIP's names: of its CLIP, or its CustomTextCLIP."""
    state = openai_state(model)
    if not custom_text:
        return state
    return {
        name if name.startswith(("visual.", "logit_")) else f"text.{name}": value
        for name, value in state.items()
    }


def write_config(folder, model_cfg, **preprocess_cfg):
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(config))


def save_open_clip(model, model_cfg, folder, *, file="open_clip_model.safetensors", **options):
    """Saves a `CLIPModel` as an OpenCLIP folder, with a tokenizer."""
    write_config(folder, model_cfg)
    state = open_clip_state(model, **options)
    if file.endswith(".safetensors"):
        save_file(state, folder / file)
    else:
        torch.save(state, folder / file)
    write_tokenizer(folder, model_cfg["text_cfg"]["vocab_size"])
    return folder
