"""Whole checkpoints of every family, as other libraries save them, for `checkpoints` to damage."""

import gzip
import json
from pathlib import Path

import torch
from clip_checkpoints import make_clip, save_clip, to_openai, write_tokenizer
from open_clip_checkpoints import save_open_clip
from safetensors.torch import load_file, save_file
from siglip_checkpoints import GEMMA_TOKENS, PIECES, make_siglip, save_siglip, write_gemma
from transformers import CLIPTokenizer

from must_jax.convert.bpe import byte_symbols

VOCABULARY, WIDTH, CONTEXT = 99, 64, 8
_VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 16,
    "patch_size": 8,
}
_TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "max_position_embeddings": CONTEXT,
}


def _clip(vocabulary: int) -> torch.nn.Module:
    ids = {"vocab_size": vocabulary, "eos_token_id": vocabulary - 1, "bos_token_id": vocabulary - 2}
    return make_clip(vision=_VISION, text=_TEXT | ids, projection_dim=32)


def _siglip(vocabulary: int) -> torch.nn.Module:
    return make_siglip(
        vision=_VISION, text=_TEXT | {"vocab_size": vocabulary, "projection_size": WIDTH}
    )


def _shards(folder: Path) -> None:
    """Splits `model.safetensors` of a folder as transformers does with large models."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    homes = {name: f"model-{1 + i % 2:05}-of-00002.safetensors" for i, name in enumerate(names)}
    for home in sorted(set(homes.values())):
        save_file({name: tensors[name] for name in names if homes[name] == home}, folder / home)
    index = {"metadata": {"total_size": 0}, "weight_map": homes}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_seeds(root: Path) -> dict[str, str]:
    """Writes one checkpoint a family below `root`.

    Returns:
      What to convert of each: `name` to the path of its folder or file.
    """
    clip = _clip(VOCABULARY)
    sources = {}
    root.mkdir(exist_ok=True)
    for name in ("hf_safetensors", "hf_sharded", "hf_fast_tokenizer"):
        save_clip(clip, root / name)
        sources[name] = name
    _shards(root / "hf_sharded")
    fast = root / "hf_fast_tokenizer"
    CLIPTokenizer.from_pretrained(str(fast), local_files_only=True).save_pretrained(str(fast))
    for file in ("vocab.json", "merges.txt"):
        (fast / file).unlink(missing_ok=True)

    save_clip(clip, root / "hf_bin")
    (root / "hf_bin" / "model.safetensors").unlink()
    torch.save(clip.state_dict(), root / "hf_bin" / "pytorch_model.bin")
    sources["hf_bin"] = "hf_bin"

    openai = to_openai(clip)
    for name in ("openai_state_dict", "openai_torchscript"):
        write_tokenizer(root / name, VOCABULARY)
        sources[name] = f"{name}/clip.pt"
    torch.save(openai.state_dict(), root / "openai_state_dict" / "clip.pt")
    example = (torch.zeros(1, 3, 16, 16), torch.zeros(1, CONTEXT, dtype=torch.int64))
    torch.jit.trace(openai, example, check_trace=False).save(
        str(root / "openai_torchscript" / "clip.pt")
    )

    merges = [f"{symbol} {symbol}" for symbol in byte_symbols()[:16]]
    gzipped = _clip(2 * 256 + len(merges) + 2)
    folder = root / "openai_vocabulary"
    folder.mkdir()
    torch.save(to_openai(gzipped).state_dict(), folder / "clip.pt")
    text = "\n".join(["version", *merges])
    (folder / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(text.encode()))
    sources["openai_vocabulary"] = "openai_vocabulary/clip.pt"

    model_cfg = {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {
            "layers": 1,
            "width": WIDTH,
            "head_width": WIDTH,
            "mlp_ratio": 1.5,
            "image_size": 16,
            "patch_size": 8,
        },
        "text_cfg": {
            "layers": 1,
            "width": WIDTH,
            "heads": 1,
            "mlp_ratio": 1.5,
            "context_length": CONTEXT,
            "vocab_size": VOCABULARY,
        },
    }
    for name, file in (
        ("open_clip_safetensors", "open_clip_model.safetensors"),
        ("open_clip_bin", "open_clip_pytorch_model.bin"),
    ):
        save_open_clip(clip, model_cfg, root / name, file=file)
        sources[name] = name
    save_siglip(_siglip(PIECES), root / "siglip")
    save_siglip(_siglip(GEMMA_TOKENS), root / "siglip2", write_tokenizer=write_gemma)
    statistics = {"do_rescale": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.3]}
    for name in ("hf_safetensors", "siglip"):
        (root / name / "preprocessor_config.json").write_text(json.dumps(statistics))
    return sources | {"siglip": "siglip", "siglip2": "siglip2"}
