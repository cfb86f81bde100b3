"""CLIP's tokenizer, from the files of a converted checkpoint."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl import logging

from must_jax.errors import UserError
from must_jax.models.spec import TextSpec

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds enough of `FILES` to make a tokenizer of."""
    pair = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    return pair or (folder / "tokenizer.json").is_file()


def load_tokenizer(folder: str | os.PathLike, *, spec: TextSpec) -> "CLIPTokenizer":
    """The tokenizer in a folder of Hugging Face files, checked against the text tower.

    Raises:
      UserError: there is none, it is damaged, or it is another vocabulary's.
    """
    folder = Path(folder)
    # transformers turns a folder without files into a tokenizer of two words, without a complaint.
    if not has_tokenizer(folder):
        raise UserError(
            f"{folder}: no tokenizer; expected tokenizer.json, or vocab.json + merges.txt"
        )
    # Else it remarks on every start that it found no PyTorch, which it isn't meant to.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        # The library and the Rust code below it raise many types for damaged files.
        first_line = str(error).strip().partition("\n")[0]
        raise UserError(f"{folder}: the tokenizer cannot be loaded ({first_line})") from error
    if len(tokenizer) != spec.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the checkpoint's vocabulary "
            f"{spec.vocab_size}; they belong to different checkpoints"
        )
    end = spec.vocab_size - 1 if spec.eot_token_id is None else spec.eot_token_id
    if tokenizer.eos_token_id != end:
        raise UserError(
            f"{folder}: the tokenizer ends a text with token {tokenizer.eos_token_id}, the "
            f"checkpoint's text tower looks for {end}; they belong to different checkpoints"
        )
    return tokenizer


def tokenize(
    texts: Sequence[str], *, tokenizer: "CLIPTokenizer", context_length: int
) -> np.ndarray:
    """Token ids (texts, context_length), int32: start, the text, end, then zeros.

    A text that is too long loses its last tokens but keeps the end token, and is logged.
    """
    ids = np.zeros((len(texts), context_length), np.int32)
    if not len(texts):
        return ids
    for row, text, tokens in zip(ids, texts, tokenizer(list(texts))["input_ids"], strict=True):
        if len(tokens) > context_length:
            logging.warning(
                "%r is %d tokens long and was cut to %d", text, len(tokens), context_length
            )
            tokens = [*tokens[: context_length - 1], tokens[-1]]
        row[: len(tokens)] = tokens
    return ids
