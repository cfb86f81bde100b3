"""CLIP checkpoints with random weights, as other libraries save them, for the conversion tests."""

import json
from collections import OrderedDict

import jax
import numpy as np
import torch
import transformers
from full_size import fill
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

transformers.utils.logging.disable_progress_bar()

START, END = "<|startoftext|>", "<|endoftext|>"
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,'-"

TINY = {
    "vision": {
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    },
    "text": {
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "vocab_size": 99,
        "max_position_embeddings": 16,
        "eos_token_id": 98,
        "bos_token_id": 97,
    },
    "projection_dim": 48,
}


def write_tokenizer(folder, vocab_size):
    """A letter tokenizer of exactly `vocab_size` tokens, start and end being the last two."""
    tokens = [letter + end for end in ("", "</w>") for letter in LETTERS]
    tokens += [f"unused{i}" for i in range(vocab_size - 2 - len(tokens))] + [START, END]
    assert len(tokens) == vocab_size
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def edit_json(path, change):
    """Rewrites a JSON file after `change` of its object."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_weights(folder, change):
    """Rewrites `model.safetensors` after `change` of the tensors by name."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def assert_same_trees(ours, theirs):
    """The same names, and bit for bit the same arrays."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def remove(name):
    """Damage to a folder: a file is missing."""
    return lambda folder: (folder / name).unlink()


def replace(name, content):
    """Damage to a folder: a file holds something else."""
    return lambda folder: (folder / name).write_bytes(content)


def make_clip(*, vision=None, text=None, seed=0, dtype=torch.float32, **config):
    """A `CLIPModel` whose every parameter is random, biases and norms included."""
    config = CLIPConfig(vision_config=vision or {}, text_config=text or {}, **config)
    return fill(CLIPModel, config, seed=seed, dtype=dtype, logit_scale=4.6052)


def save_clip(model, folder, **options):
    """Saves in Hugging Face layout, with a tokenizer."""
    model.save_pretrained(folder, **options)
    write_tokenizer(folder, model.config.text_config.vocab_size)
    return folder


class OpenAIBlock(torch.nn.Module):
    def __init__(self, width, heads, mlp, mask):
        super().__init__()
        self.attn = torch.nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1 = torch.nn.LayerNorm(width)
        layers = [("c_fc", torch.nn.Linear(width, mlp)), ("c_proj", torch.nn.Linear(mlp, width))]
        self.mlp = torch.nn.Sequential(OrderedDict(layers))
        self.ln_2 = torch.nn.LayerNorm(width)
        self.attn_mask = mask

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=self.attn_mask)[0]
        hidden = self.mlp.c_fc(self.ln_2(x))
        return x + self.mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden))


class OpenAITransformer(torch.nn.Module):
    def __init__(self, width, depth, mlp, mask=None):
        super().__init__()
        blocks = [OpenAIBlock(width, width // 64, mlp, mask) for _ in range(depth)]
        self.resblocks = torch.nn.Sequential(*blocks)

    def forward(self, x):
        return self.resblocks(x)


class OpenAIVision(torch.nn.Module):
    def __init__(self, config, embed_dim):
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.conv1 = torch.nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = torch.nn.Parameter(torch.zeros(width))
        tokens = (config.image_size // patch) ** 2 + 1
        self.positional_embedding = torch.nn.Parameter(torch.zeros(tokens, width))
        self.ln_pre = torch.nn.LayerNorm(width)
        self.transformer = OpenAITransformer(
            width, config.num_hidden_layers, config.intermediate_size
        )
        self.ln_post = torch.nn.LayerNorm(width)
        self.proj = torch.nn.Parameter(torch.zeros(width, embed_dim))

    def forward(self, x):
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], 1)
        x = self.transformer(self.ln_pre(x + self.positional_embedding))
        return self.ln_post(x[:, 0]) @ self.proj


class OpenAIClip(torch.nn.Module):
    """OpenAI's parameter names and computation, on the architecture of a `CLIPModel`."""

    def __init__(self, config):
        super().__init__()
        text = config.text_config
        length, width = text.max_position_embeddings, text.hidden_size
        mask = torch.full((length, length), float("-inf"), device="cpu").triu(1)
        self.visual = OpenAIVision(config.vision_config, config.projection_dim)
        self.transformer = OpenAITransformer(
            width, text.num_hidden_layers, text.intermediate_size, mask
        )
        self.token_embedding = torch.nn.Embedding(text.vocab_size, width)
        self.positional_embedding = torch.nn.Parameter(torch.zeros(length, width))
        self.ln_final = torch.nn.LayerNorm(width)
        self.text_projection = torch.nn.Parameter(torch.zeros(width, config.projection_dim))
        self.logit_scale = torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("input_resolution", torch.tensor(config.vision_config.image_size))
        self.register_buffer("context_length", torch.tensor(length))
        self.register_buffer("vocab_size", torch.tensor(text.vocab_size))

    def forward(self, image, text):
        x = self.transformer(self.token_embedding(text) + self.positional_embedding)
        ends = text.argmax(-1)
        texts = self.ln_final(x)[torch.arange(x.shape[0]), ends] @ self.text_projection
        images = self.visual(image)
        return torch.nn.functional.normalize(images, dim=-1), texts


# Hugging Face's names below a layer, and OpenAI's below a block.
_IN_LAYER = {
    "layer_norm1": "ln_1",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def openai_state(model):
    """The weights of a `CLIPModel` under OpenAI's names."""
    theirs = model.state_dict()
    vision, text = "vision_model.embeddings", "text_model.embeddings"
    moves = {
        "visual.conv1.weight": theirs[f"{vision}.patch_embedding.weight"],
        "visual.class_embedding": theirs[f"{vision}.class_embedding"],
        "visual.positional_embedding": theirs[f"{vision}.position_embedding.weight"],
        "visual.proj": theirs["visual_projection.weight"].T,
        "token_embedding.weight": theirs[f"{text}.token_embedding.weight"],
        "positional_embedding": theirs[f"{text}.position_embedding.weight"],
        "text_projection": theirs["text_projection.weight"].T,
        "logit_scale": theirs["logit_scale"],
    }
    modules = {
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        "ln_final": "text_model.final_layer_norm",
    }
    for prefix, tower in (("visual.", "vision_model"), ("", "text_model")):
        depth = getattr(model.config, tower.replace("model", "config")).num_hidden_layers
        for i in range(depth):
            block, layer = f"{prefix}transformer.resblocks.{i}", f"{tower}.encoder.layers.{i}"
            for kind in ("weight", "bias"):
                qkv = [theirs[f"{layer}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
                moves[f"{block}.attn.in_proj_{kind}"] = torch.cat(qkv)
            modules |= {f"{block}.{ours}": f"{layer}.{name}" for name, ours in _IN_LAYER.items()}
    for ours, name in modules.items():
        moves |= {f"{ours}.{kind}": theirs[f"{name}.{kind}"] for kind in ("weight", "bias")}
    return {name: tensor.contiguous() for name, tensor in moves.items()}


def to_openai(model):
    """An `OpenAIClip` with the weights of a `CLIPModel`."""
    with torch.device("meta"):
        clip = OpenAIClip(model.config)
    vision, text = model.config.vision_config, model.config.text_config
    buffers = {
        "input_resolution": torch.tensor(vision.image_size),
        "context_length": torch.tensor(text.max_position_embeddings),
        "vocab_size": torch.tensor(text.vocab_size),
    }
    clip.load_state_dict(openai_state(model) | buffers, assign=True)
    return clip.eval()


def save_openai(model, folder):
    """Saves OpenAI's weights as they were released, TorchScript, with a tokenizer beside it."""
    write_tokenizer(folder, model.config.text_config.vocab_size)
    torch.jit.script(to_openai(model)).save(folder / "clip.pt")
    return folder / "clip.pt"


def write_config(folder, **config):
    """A folder's config.json with these fields alone, the rest being defaults."""
    (folder / "config.json").write_text(json.dumps({"model_type": "clip"} | config))
