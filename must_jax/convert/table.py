"""Which tensor of a checkpoint becomes which parameter, as tables: one a layout.

Shapes are written in letters: W width, M MLP width, E embedding, P patch size, T tokens (patches
and the class token, or the context), V vocabulary, 3W three widths; a digit is itself.
"""

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from must_jax.models.spec import ClipSpec, TowerSpec

Transform = Callable[[np.ndarray, TowerSpec], np.ndarray]


def _same(x: np.ndarray, spec: TowerSpec) -> np.ndarray:
    return x


def _transpose(x: np.ndarray, spec: TowerSpec) -> np.ndarray:
    return x.T


def _patches(x: np.ndarray, spec: TowerSpec) -> np.ndarray:
    """Convolution weights (W, 3, P, P) to (P * P * 3, W), the colour running fastest."""
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])


def _qkv_kernel(x: np.ndarray, spec: TowerSpec) -> np.ndarray:
    """Query, key and value rows (3W, W) to (W, 3, heads, head width)."""
    return x.T.reshape(spec.width, 3, spec.num_heads, -1)


def _qkv_bias(x: np.ndarray, spec: TowerSpec) -> np.ndarray:
    return x.reshape(3, spec.num_heads, -1)


def _out_kernel(x: np.ndarray, spec: TowerSpec) -> np.ndarray:
    return x.T.reshape(spec.num_heads, -1, spec.width)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One parameter and where it comes from.

    Attributes:
      path: the parameter, `vision/...` or `text/...`.
      sources: keys of the checkpoint, joined along their first axis; `*` is the number of a block,
        and the blocks are stacked.
      shape: the shape that each source has to have, in letters.
      transform: from the joined sources of one block to the parameter.
    """

    path: str
    sources: tuple[str, ...]
    shape: str
    transform: Transform = _same


@dataclasses.dataclass(frozen=True)
class Layout:
    """A kind of checkpoint: its rules, and the keys that hold no parameter and are passed over."""

    name: str
    rules: tuple[Rule, ...]
    ignored: tuple[str, ...]


def _pair(path: str, source: str, shape: str = "W") -> tuple[Rule, ...]:
    """A LayerNorm."""
    return (
        Rule(f"{path}/scale", (f"{source}.weight",), shape),
        Rule(f"{path}/bias", (f"{source}.bias",), shape),
    )


def _hf_blocks(tower: str, source: str) -> tuple[Rule, ...]:
    path, layer = f"{tower}/blocks", f"{source}.encoder.layers.*"
    qkv = [f"{layer}.self_attn.{letter}_proj" for letter in "qkv"]
    return (
        *_pair(f"{path}/ln_1", f"{layer}.layer_norm1"),
        Rule(f"{path}/attn/qkv/kernel", tuple(f"{x}.weight" for x in qkv), "W W", _qkv_kernel),
        Rule(f"{path}/attn/qkv/bias", tuple(f"{x}.bias" for x in qkv), "W", _qkv_bias),
        Rule(
            f"{path}/attn/out/kernel", (f"{layer}.self_attn.out_proj.weight",), "W W", _out_kernel
        ),
        Rule(f"{path}/attn/out/bias", (f"{layer}.self_attn.out_proj.bias",), "W"),
        *_pair(f"{path}/ln_2", f"{layer}.layer_norm2"),
        Rule(f"{path}/mlp/fc1/kernel", (f"{layer}.mlp.fc1.weight",), "M W", _transpose),
        Rule(f"{path}/mlp/fc1/bias", (f"{layer}.mlp.fc1.bias",), "M"),
        Rule(f"{path}/mlp/fc2/kernel", (f"{layer}.mlp.fc2.weight",), "W M", _transpose),
        Rule(f"{path}/mlp/fc2/bias", (f"{layer}.mlp.fc2.bias",), "W"),
    )


def _openai_blocks(tower: str, source: str) -> tuple[Rule, ...]:
    path, layer = f"{tower}/blocks", f"{source}transformer.resblocks.*"
    return (
        *_pair(f"{path}/ln_1", f"{layer}.ln_1"),
        Rule(f"{path}/attn/qkv/kernel", (f"{layer}.attn.in_proj_weight",), "3W W", _qkv_kernel),
        Rule(f"{path}/attn/qkv/bias", (f"{layer}.attn.in_proj_bias",), "3W", _qkv_bias),
        Rule(f"{path}/attn/out/kernel", (f"{layer}.attn.out_proj.weight",), "W W", _out_kernel),
        Rule(f"{path}/attn/out/bias", (f"{layer}.attn.out_proj.bias",), "W"),
        *_pair(f"{path}/ln_2", f"{layer}.ln_2"),
        Rule(f"{path}/mlp/fc1/kernel", (f"{layer}.mlp.c_fc.weight",), "M W", _transpose),
        Rule(f"{path}/mlp/fc1/bias", (f"{layer}.mlp.c_fc.bias",), "M"),
        Rule(f"{path}/mlp/fc2/kernel", (f"{layer}.mlp.c_proj.weight",), "W M", _transpose),
        Rule(f"{path}/mlp/fc2/bias", (f"{layer}.mlp.c_proj.bias",), "W"),
    )


_HF_VISION = "vision_model.embeddings"
_HF_TEXT = "text_model.embeddings"

HUGGING_FACE = Layout(
    name="Hugging Face CLIPModel",
    rules=(
        Rule(
            "vision/patch_embed/kernel",
            (f"{_HF_VISION}.patch_embedding.weight",),
            "W 3 P P",
            _patches,
        ),
        Rule("vision/class_embed", (f"{_HF_VISION}.class_embedding",), "W"),
        Rule("vision/pos_embed", (f"{_HF_VISION}.position_embedding.weight",), "T W"),
        *_pair("vision/ln_pre", "vision_model.pre_layrnorm"),
        *_hf_blocks("vision", "vision_model"),
        *_pair("vision/ln_post", "vision_model.post_layernorm"),
        Rule("vision/proj", ("visual_projection.weight",), "E W", _transpose),
        Rule("text/token_embed", (f"{_HF_TEXT}.token_embedding.weight",), "V W"),
        Rule("text/pos_embed", (f"{_HF_TEXT}.position_embedding.weight",), "T W"),
        *_hf_blocks("text", "text_model"),
        *_pair("text/ln_final", "text_model.final_layer_norm"),
        Rule("text/proj", ("text_projection.weight",), "E W", _transpose),
    ),
    ignored=("logit_scale", f"{_HF_VISION}.position_ids", f"{_HF_TEXT}.position_ids"),
)

OPENAI = Layout(
    name="OpenAI CLIP",
    rules=(
        Rule("vision/patch_embed/kernel", ("visual.conv1.weight",), "W 3 P P", _patches),
        Rule("vision/class_embed", ("visual.class_embedding",), "W"),
        Rule("vision/pos_embed", ("visual.positional_embedding",), "T W"),
        *_pair("vision/ln_pre", "visual.ln_pre"),
        *_openai_blocks("vision", "visual."),
        *_pair("vision/ln_post", "visual.ln_post"),
        Rule("vision/proj", ("visual.proj",), "W E"),
        Rule("text/token_embed", ("token_embedding.weight",), "V W"),
        Rule("text/pos_embed", ("positional_embedding",), "T W"),
        *_openai_blocks("text", ""),
        *_pair("text/ln_final", "ln_final"),
        Rule("text/proj", ("text_projection",), "W E"),
    ),
    ignored=(
        "logit_scale",
        "input_resolution",
        "visual.input_resolution",
        "context_length",
        "vocab_size",
        "attn_mask",
        "transformer.resblocks.*.attn_mask",
    ),
)


def _dimensions(spec: ClipSpec, rule: Rule) -> dict[str, int]:
    tower = spec.vision if rule.path.startswith("vision/") else spec.text
    return {
        "W": tower.width,
        "3W": 3 * tower.width,
        "M": tower.mlp_dim,
        "E": spec.embed_dim,
        "P": spec.vision.patch_size,
        "T": spec.vision.num_patches + 1 if tower is spec.vision else spec.text.context_length,
        "V": spec.text.vocab_size,
    }


def _blocks(rule: Rule, depths: Mapping[str, int]) -> list[tuple[str, ...]]:
    """The source keys of a rule, block by block; one entry where it names no block."""
    if "*" not in rule.sources[0]:
        return [rule.sources]
    depth = depths[rule.path.partition("/")[0]]
    return [tuple(key.replace("*", str(i)) for key in rule.sources) for i in range(depth)]


def name_problems(
    tensors: Mapping[str, np.ndarray], *, layout: Layout, depths: Mapping[str, int]
) -> list[str]:
    """What the keys lack and what is left over, for `depths` of `vision` and `text`."""
    wanted = {k for rule in layout.rules for keys in _blocks(rule, depths) for k in keys}
    missing = sorted((wanted | {"logit_scale"}) - tensors.keys())
    left_over = sorted(
        key
        for key in tensors.keys() - wanted
        if not any(fnmatch.fnmatchcase(key, pattern) for pattern in layout.ignored)
    )
    problems = []
    if missing:
        problems.append(f"missing: {', '.join(missing)}")
    if left_over:
        problems.append(f"left over: {', '.join(left_over)}")
    return problems


def shape_problems(
    tensors: Mapping[str, np.ndarray], *, layout: Layout, spec: ClipSpec
) -> list[str]:
    """The tensors whose shape is not what the architecture asks for; absent ones don't count."""
    depths = {"vision": spec.vision.depth, "text": spec.text.depth}
    wrong = []
    for rule in layout.rules:
        sizes = _dimensions(spec, rule)
        shape = tuple(sizes[d] if d in sizes else int(d) for d in rule.shape.split())
        for keys in _blocks(rule, depths):
            wrong += [
                f"{key} is {tensors[key].shape}, expected {shape}"
                for key in keys
                if key in tensors and tensors[key].shape != shape
            ]
    return [f"wrong shape: {'; '.join(wrong)}"] if wrong else []


def _joined(sources: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(sources) if len(sources) > 1 else sources[0]


def convert_tensors(
    tensors: Mapping[str, np.ndarray], *, layout: Layout, spec: ClipSpec
) -> dict[str, dict]:
    """The parameters {"vision": ..., "text": ...} in float32, of tensors without problems."""
    depths = {"vision": spec.vision.depth, "text": spec.text.depth}
    tree: dict[str, dict] = {}
    for rule in layout.rules:
        *parents, leaf = rule.path.split("/")
        tower = spec.vision if parents[0] == "vision" else spec.text
        node: dict[str, Any] = tree
        for name in parents:
            node = node.setdefault(name, {})
        blocks = [
            rule.transform(_joined([tensors[key] for key in keys]), tower)
            for keys in _blocks(rule, depths)
        ]
        value = np.stack(blocks) if "*" in rule.sources[0] else blocks[0]
        node[leaf] = np.ascontiguousarray(value, dtype=np.float32)
    return tree
