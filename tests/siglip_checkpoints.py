"""SigLIP checkpoints with random weights, as transformers saves them, with little tokenizers."""

import io
import json

import sentencepiece
import torch
import transformers
from full_size import fill
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import Siglip2Tokenizer, SiglipConfig, SiglipModel, SiglipTokenizer

transformers.utils.logging.disable_progress_bar()

PIECES = 45
GEMMA_TOKENS = 400

TINY = {
    "vision": {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 16,
        "patch_size": 4,
    },
    "text": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": PIECES,
        "max_position_embeddings": 16,
        "projection_size": 48,
    },
}

LINES = [
    "a photo of a cat",
    "a picture of the big dog",
    "zebra seven sits on the mat",
    "no circle square or star here",
    "the quick brown fox jumps over lazy dogs and quiz vex myth",
]


def write_spiece(folder):
    """SigLIP's kind of tokenizer: padding 0, end 1, unknown 2, and `PIECES` pieces in all."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=file,
        vocab_size=PIECES,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(file.getvalue())
    return SiglipTokenizer.from_pretrained(str(folder), local_files_only=True)


def write_gemma(folder):
    """SigLIP 2's kind of tokenizer: BPE that falls back on bytes, an end token and no start."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    trained = Tokenizer(models.BPE(fuse_unk=True, unk_token="<unk>", byte_fallback=True))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    trainer = trainers.BpeTrainer(
        vocab_size=GEMMA_TOKENS,
        special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)],
        show_progress=False,
    )
    trained.train_from_iterator(LINES * 3, trainer)
    model = json.loads(trained.to_str())["model"]
    tokenizer = Siglip2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        padding_side="right",
        add_bos_token=False,
        add_eos_token=True,
    )
    assert len(tokenizer) == GEMMA_TOKENS
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_siglip(*, vision=None, text=None, seed=0, dtype=torch.float32):
    """A `SiglipModel` whose every parameter is random, biases and norms included."""
    config = SiglipConfig(vision_config=vision or {}, text_config=text or {})
    scalars = {"logit_scale": 4.7655, "logit_bias": -12.93}
    return fill(SiglipModel, config, seed=seed, dtype=dtype, **scalars)


def save_siglip(model, folder, *, write_tokenizer=write_spiece, **options):
    """Saves in Hugging Face layout, with a tokenizer."""
    model.save_pretrained(folder, **options)
    write_tokenizer(folder)
    return folder
