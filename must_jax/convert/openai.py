"""OpenAI's CLIP: its table, and its architecture from the shapes of the tensors."""

import re
from collections.abc import Iterable
from pathlib import Path

from must_jax.convert.fields import OPENAI_MEAN, OPENAI_STD
from must_jax.convert.layout import Layout, Rule, check_names, dense, norm
from must_jax.convert.source import SourceCheckpoint, logit_scale
from must_jax.convert.tensors import Tensors
from must_jax.convert.torch_archive import open_torch_archive
from must_jax.convert.transforms import out_kernel, patches, qkv_bias, qkv_kernel
from must_jax.errors import UserError
from must_jax.models.spec import ClipSpec, TextSpec, VisionSpec

# OpenAI's towers have one head for every 64 units; no shape tells.
HEAD_WIDTH = 64

# Widths of OpenCLIP's ViTs whose heads are wider, so that 64 would silently be wrong.
_OPEN_CLIP_WIDTHS = {1280: "ViT-H/14", 1408: "ViT-g/14", 1664: "ViT-bigG/14", 1792: "ViT-e/14"}


def blocks(tower: str, source: str) -> tuple[Rule, ...]:
    """The transformer of a tower below `source`, as OpenAI names its layers."""
    path, layer = f"{tower}/blocks", f"{source}transformer.resblocks.*"
    return (
        *norm(f"{path}/ln_1", f"{layer}.ln_1"),
        Rule(f"{path}/attn/qkv/kernel", (f"{layer}.attn.in_proj_weight",), "3W W", qkv_kernel),
        Rule(f"{path}/attn/qkv/bias", (f"{layer}.attn.in_proj_bias",), "3W", qkv_bias),
        *dense(f"{path}/attn/out", f"{layer}.attn.out_proj", "W W", out_kernel),
        *norm(f"{path}/ln_2", f"{layer}.ln_2"),
        *dense(f"{path}/mlp/fc1", f"{layer}.mlp.c_fc", "M W"),
        *dense(f"{path}/mlp/fc2", f"{layer}.mlp.c_proj", "W M"),
    )


def rules(*, text: str) -> tuple[Rule, ...]:
    """Both towers, the names of the text tower starting with `text`."""
    return (
        Rule("vision/patch_embed/kernel", ("visual.conv1.weight",), "W 3 P P", patches),
        Rule("vision/class_embed", ("visual.class_embedding",), "W"),
        Rule("vision/pos_embed", ("visual.positional_embedding",), "T W"),
        *norm("vision/ln_pre", "visual.ln_pre"),
        *blocks("vision", "visual."),
        *norm("vision/ln_post", "visual.ln_post"),
        Rule("vision/proj", ("visual.proj",), "W E"),
        Rule("text/token_embed", (f"{text}token_embedding.weight",), "V W"),
        Rule("text/pos_embed", (f"{text}positional_embedding",), "T W"),
        *blocks("text", text),
        *norm("text/ln_final", f"{text}ln_final"),
        Rule("text/proj", (f"{text}text_projection",), "W E"),
    )


LAYOUT = Layout(
    name="OpenAI CLIP",
    rules=rules(text=""),
    ignored=(
        "input_resolution",
        "visual.input_resolution",
        "context_length",
        "vocab_size",
        "attn_mask",
        "transformer.resblocks.*.attn_mask",
    ),
)


def _count_blocks(keys: Iterable[str], prefix: str) -> int:
    """One more than the largest number that follows `prefix` in the keys."""
    pattern = re.compile(re.escape(prefix) + r"(\d{1,4})\.")
    return max((int(m[1]) + 1 for key in keys if (m := pattern.match(key))), default=0)


def _heads(width: int, *, where: str) -> int:
    if width in _OPEN_CLIP_WIDTHS:
        raise UserError(
            f"{where}: is {width} wide, as OpenCLIP's {_OPEN_CLIP_WIDTHS[width]}, whose heads no "
            "tensor tells; save it as open_clip_pytorch_model.bin in a folder that holds its "
            "open_clip_config.json, and pass the folder"
        )
    heads = max(1, width // HEAD_WIDTH)
    if width % heads:
        raise UserError(f"{where}: width {width} is not a multiple of {HEAD_WIDTH}, a head's width")
    return heads


def _spec(tensors: Tensors, *, activation: str, where: str) -> ClipSpec:
    """The spec that the shapes tell; KeyError where a tensor that tells it lacks."""
    try:
        width, _, _, patch_size = tensors["visual.conv1.weight"].shape
        tokens, _ = tensors["visual.positional_embedding"].shape
        _, embed_dim = tensors["visual.proj"].shape
        context_length, text_width = tensors["positional_embedding"].shape
        vocab_size, _ = tensors["token_embedding.weight"].shape
        vision_mlp, _ = tensors["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape
        text_mlp, _ = tensors["transformer.resblocks.0.mlp.c_fc.weight"].shape
    except ValueError as error:
        raise UserError(f"{where}: a weight has the wrong number of axes ({error})") from error
    sizes = (width, patch_size, embed_dim, context_length, text_width, vision_mlp, text_mlp)
    if min(sizes) < 1 or tokens < 2:
        raise UserError(f"{where}: a weight has an axis without elements")
    grid = round((tokens - 1) ** 0.5)
    if grid**2 != tokens - 1:
        raise UserError(
            f"{where}: visual.positional_embedding has {tokens} rows, "
            "expected one more than a square"
        )
    depths = _depths(tensors)
    return ClipSpec(
        vision=VisionSpec(
            width=width,
            depth=depths["vision"],
            num_heads=_heads(width, where=where),
            mlp_dim=vision_mlp,
            activation=activation,
            layer_norm_eps=1e-5,
            image_size=grid * patch_size,
            patch_size=patch_size,
        ),
        text=TextSpec(
            width=text_width,
            depth=depths["text"],
            num_heads=_heads(text_width, where=where),
            mlp_dim=text_mlp,
            activation=activation,
            layer_norm_eps=1e-5,
            vocab_size=vocab_size,
            context_length=context_length,
            eot_token_id=None,
        ),
        embed_dim=embed_dim,
        logit_scale=logit_scale(tensors, where=where),
        image_mean=OPENAI_MEAN,
        image_std=OPENAI_STD,
    )


def _depths(tensors: Tensors) -> dict[str, int]:
    return {
        "vision": _count_blocks(tensors, "visual.transformer.resblocks."),
        "text": _count_blocks(tensors, "transformer.resblocks."),
    }


def open_file(file: Path, *, activation: str) -> SourceCheckpoint:
    """Opens a `.pt` file, a TorchScript archive or a state dict.

    Raises:
      UserError: it is damaged, or no OpenAI CLIP with a ViT.
    """
    if file.suffix == ".safetensors":
        raise UserError(f"{file}: pass its folder, which holds config.json and the tokenizer too")
    tensors = open_torch_archive(file)
    if any(key.startswith(("visual.layer1.", "visual.attnpool.")) for key in tensors):
        raise UserError(f"{file}: a CLIP with a ResNet image tower; only ViTs can be converted")
    if any(key.startswith("vision_model.") for key in tensors):
        raise UserError(f"{file}: weights of a Hugging Face model; pass its folder")
    if not any(key.startswith("visual.") for key in tensors):
        raise UserError(
            f"{file}: unknown layout, no tensor of it is named visual.*; expected an OpenAI CLIP"
        )
    try:
        spec = _spec(tensors, activation=activation, where=str(file))
    except KeyError:
        check_names(tensors, layout=LAYOUT, depths=_depths(tensors), where=str(file))
        raise
    return SourceCheckpoint(layout=LAYOUT, tensors=tensors, spec=spec)
