"""A run as the folder of a transformers `CLIPModel` or `SiglipModel`."""

from pathlib import Path
from typing import Any

from must_jax.convert import hugging_face, siglip
from must_jax.convert.layout import Layout
from must_jax.convert.source import source_tensors
from must_jax.convert.weights import HUGGING_FACE_NAMES
from must_jax.errors import UserError
from must_jax.exporting.files import copy_tokenizer, save_tensors, write_json
from must_jax.exporting.finished import FinishedRun
from must_jax.models import ClipSpec
from must_jax.models.spec import TowerSpec

BICUBIC = 3  # Pillow's number


def _tower(spec: TowerSpec, activations: dict[str, str]) -> dict[str, Any]:
    names = {ours: theirs for theirs, ours in activations.items()}
    if spec.activation not in names:
        raise UserError(f"activation {spec.activation} has no name in this layout")
    return {
        "hidden_size": spec.width,
        "intermediate_size": spec.mlp_dim,
        "num_hidden_layers": spec.depth,
        "num_attention_heads": spec.num_heads,
        "hidden_act": names[spec.activation],
        "layer_norm_eps": spec.layer_norm_eps,
    }


def clip_config(spec: ClipSpec) -> dict[str, Any]:
    """`config.json` of a `CLIPModel`."""
    vision, text = (_tower(tower, hugging_face.ACTIVATIONS) for tower in (spec.vision, spec.text))
    end = spec.text.eot_token_id
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "dtype": "float32",
        "projection_dim": spec.embed_dim,
        "vision_config": {
            "model_type": "clip_vision_model",
            "projection_dim": spec.embed_dim,
            "image_size": spec.vision.image_size,
            "patch_size": spec.vision.patch_size,
            **vision,
        },
        "text_config": {
            "model_type": "clip_text_model",
            "projection_dim": spec.embed_dim,
            "vocab_size": spec.text.vocab_size,
            "max_position_embeddings": spec.text.context_length,
            "bos_token_id": spec.text.vocab_size - 2,
            # Pools at the largest id, as a spec without an end token does.
            "eos_token_id": hugging_face.LEGACY_EOS if end is None else end,
            **text,
        },
    }


def siglip_config(spec: ClipSpec) -> dict[str, Any]:
    """`config.json` of a `SiglipModel`."""
    vision, text = (_tower(tower, siglip.ACTIVATIONS) for tower in (spec.vision, spec.text))
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "dtype": "float32",
        "vision_config": {
            "model_type": "siglip_vision_model",
            "image_size": spec.vision.image_size,
            "patch_size": spec.vision.patch_size,
            **vision,
        },
        "text_config": {
            "model_type": "siglip_text_model",
            "projection_size": spec.embed_dim,
            "vocab_size": spec.text.vocab_size,
            "max_position_embeddings": spec.text.context_length,
            **text,
        },
    }


def preprocessor_config(spec: ClipSpec) -> dict[str, Any]:
    """`preprocessor_config.json`: the view that the run was evaluated on.

    A SigLIP's too: it was adapted to the centre of images, not to whole ones squeezed to a square,
    which its own processor makes.
    """
    size = spec.vision.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.image_mean),
        "image_std": list(spec.image_std),
    }


def write(run: FinishedRun, folder: Path) -> None:
    """Writes a folder that `from_pretrained` reads.

    Raises:
      UserError: the layout can't hold the model.
    """
    spec = run.spec
    layout: Layout
    if spec.vision.has_class_token:
        layout, config = hugging_face.LAYOUT, clip_config(spec)
    else:
        layout, config = siglip.LAYOUT, siglip_config(spec)
        if spec.logit_bias is None:
            raise UserError(
                f"{run.tokenizer.parent}: was converted by a version that did not keep a SigLIP's "
                "logit bias; convert the checkpoint again, which changes nothing else"
            )
    tensors = source_tensors(run.params, layout=layout, spec=spec)
    save_tensors(folder / HUGGING_FACE_NAMES[0], tensors)
    write_json(folder / hugging_face.CONFIG, config)
    write_json(folder / hugging_face.PREPROCESSOR, preprocessor_config(spec))
    copy_tokenizer(run, folder)
