"""The text tower's tokenizer, CLIP's or SigLIP's, from the files of a converted checkpoint."""

import contextlib
import dataclasses
import json
import os
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from must_jax.errors import UserError, first_line
from must_jax.local_files import MAX_TEXT, read_bytes
from must_jax.models.spec import TextSpec
from must_jax.tokenizer_pipeline import check_charsmap, check_pieces, check_pipeline

SENTENCEPIECE = "spiece.model"
_SAMPLE = "a photo of a caf\u00e9, \u96ea."  # with letters that no small vocabulary has
_MOST_TOKENS = 64  # of a letter, which has four bytes at most
FILES = (
    SENTENCEPIECE,
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Makes token ids of texts.

    Attributes:
      encode: the ids of each text, the end token included.
      num_tokens: in the vocabulary.
      largest_id: of them.
      end_id: the end token's.
      pad_id: what fills a text up to the context's length.
    """

    encode: Callable[[list[str]], list[list[int]]]
    num_tokens: int
    largest_id: int
    end_id: int
    pad_id: int


def _has_bpe(folder: Path) -> bool:
    pair = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    return pair or (folder / "tokenizer.json").is_file()


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds enough of `FILES` to make a tokenizer of."""
    return _has_bpe(folder) or (folder / SENTENCEPIECE).is_file()


def tokenizer_files(folder: Path) -> list[str]:
    """Those of `FILES` that a folder has.

    Raises:
      UserError: one is larger than a vocabulary is.
    """
    found = [name for name in FILES if (folder / name).is_file()]
    for name in found:
        if (folder / name).stat().st_size > MAX_TEXT:
            raise UserError(f"{folder / name}: larger than {MAX_TEXT >> 20} MiB; no tokenizer is")
    return found


def load_tokenizer(folder: str | os.PathLike, *, spec: TextSpec) -> Tokenizer:
    """The tokenizer in a folder of Hugging Face files, checked against the text tower.

    Raises:
      UserError: there is none, it is damaged, or it is another vocabulary's. `encode` raises it
        where damage shows in some texts alone.
    """
    folder = Path(folder)
    tokenizer_files(folder)
    is_siglip = spec.pooling == "last_token"
    with _refusing(f"{folder}: the tokenizer cannot be loaded"):
        tokenizer = _load_siglip(folder) if is_siglip else load_clip_tokenizer(folder)
    if tokenizer.num_tokens != spec.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.num_tokens} tokens, the checkpoint's "
            f"vocabulary {spec.vocab_size}; they belong to different checkpoints"
        )
    if tokenizer.largest_id >= spec.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has a token of number {tokenizer.largest_id}, and the "
            f"checkpoint knows {spec.vocab_size} tokens; the vocabulary is damaged"
        )
    end = spec.vocab_size - 1 if spec.eot_token_id is None else spec.eot_token_id
    if not is_siglip and tokenizer.end_id != end:
        raise UserError(
            f"{folder}: the tokenizer ends a text with token {tokenizer.end_id}, the "
            f"checkpoint's text tower looks for {end}; they belong to different checkpoints"
        )

    def encode(texts: list[str]) -> list[list[int]]:
        with _refusing(f"{folder}: the tokenizer is damaged and fails on a text"):
            return tokenizer.encode(texts)

    encode([_SAMPLE])  # while the checkpoint is converted, not when it is used
    return dataclasses.replace(tokenizer, encode=encode)


@contextlib.contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Says `what` of the many types that the libraries, and native code below them, raise."""
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the native code's are no Exception
        raise UserError(f"{what} ({first_line(error)})") from error


def load_clip_tokenizer(folder: Path) -> Tokenizer:
    """CLIP's tokenizer in a folder of Hugging Face files, for a text tower that isn't there yet.

    Raises:
      UserError: there is none, or what it does to a text might take hours or gigabytes. Other
        damage raises what transformers raises.
    """
    # transformers turns a folder without files into a tokenizer of two words, without a complaint.
    if not _has_bpe(folder):
        raise UserError(
            f"{folder}: no tokenizer; expected tokenizer.json, or vocab.json + merges.txt"
        )
    # Not all of it is used, but all is loaded.
    if (folder / "tokenizer.json").is_file():
        check_pipeline(folder / "tokenizer.json")
    # Else it remarks on every start that it found no PyTorch, which it isn't meant to.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    return Tokenizer(
        # It would warn of long texts, which `tokenize` cuts, that they cause indexing errors.
        encode=lambda texts: tokenizer(texts, verbose=False)["input_ids"],
        num_tokens=len(tokenizer),
        largest_id=max(tokenizer.get_vocab().values()),
        end_id=tokenizer.eos_token_id,
        pad_id=0,
    )


def canonicalize(text: str) -> str:
    """`text` as SigLIP's tokenizer cleans it: lower case, no ASCII punctuation, single spaces."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(text.split())


def _load_siglip(folder: Path) -> Tokenizer:
    """SigLIP's tokenizer, in `spiece.model`, or SigLIP 2's (Gemma's), in `tokenizer.json`.

    Both read lower case and add an end token but no start token; what they pad with is named in the
    files beside them.
    """
    config = _read_config(folder)
    if config.get("do_lower_case") is False:
        raise UserError(f"{folder}: do_lower_case is false; only lower-case SigLIPs are supported")
    clean: Callable[[str], str]
    split: Callable[[str], list[int]]
    if (folder / SENTENCEPIECE).is_file():
        from sentencepiece import SentencePieceProcessor
        from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

        data = read_bytes(folder / SENTENCEPIECE, limit=MAX_TEXT)
        proto = ModelProto.FromString(data)
        check_pieces((piece.piece for piece in proto.pieces), folder / SENTENCEPIECE)
        charsmap = proto.normalizer_spec.precompiled_charsmap
        if charsmap:
            check_charsmap(charsmap, folder / SENTENCEPIECE)
        model = SentencePieceProcessor(model_proto=data)
        pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
        # Vocabularies made for T5 end in sentinels, which no text becomes: towers lack their rows.
        while "<extra_id_" in pieces[-1]:
            pieces.pop()
        ids = {piece: i for i, piece in enumerate(pieces)}
        clean, split = canonicalize, model.encode
        end, pad = "</s>", "</s>"
    elif (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer as FastTokenizer

        check_pipeline(folder / "tokenizer.json")
        fast = FastTokenizer.from_file(str(folder / "tokenizer.json"))
        fast.no_padding()
        fast.no_truncation()
        fast.post_processor = None  # it may write a text out any number of times
        ids, split = fast.get_vocab(), lambda text: fast.encode(text, add_special_tokens=False).ids
        # The vocabulary of the first SigLIP may have been saved in the newer kind of file.
        clean = canonicalize if config.get("tokenizer_class") == "SiglipTokenizer" else str.lower
        end, pad = "<eos>", "<pad>"
    else:
        raise UserError(f"{folder}: no tokenizer; expected {SENTENCEPIECE} or tokenizer.json")

    end_id, pad_id = (
        _special_id(config.get(name), default, ids=ids, where=f"{folder}: {name}")
        for name, default in (("eos_token", end), ("pad_token", pad))
    )

    def encode(text: str) -> list[int]:
        tokens = split(clean(text))
        if len(tokens) > _MOST_TOKENS * (len(text) + 1):
            raise ValueError(f"it makes {len(tokens)} tokens of {len(text)} letters")
        return [*tokens, end_id]

    return Tokenizer(
        encode=lambda texts: [encode(text) for text in texts],
        num_tokens=len(ids),
        largest_id=max(ids.values()),
        end_id=end_id,
        pad_id=pad_id,
    )


def _read_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            config |= json.loads((folder / name).read_text(encoding="utf-8"))
    return config


def _special_id(token: Any, default: str, *, ids: Mapping[str, int], where: str) -> int:
    # Files write a token bare, or as an object with its flags.
    token = token["content"] if isinstance(token, dict) else token or default
    if token not in ids:
        raise UserError(f"{where} {token!r} is not in the vocabulary")
    return ids[token]


def tokenize(texts: Sequence[str], *, tokenizer: Tokenizer, context_length: int) -> np.ndarray:
    """Token ids (texts, context_length), int32, of each text, filled up with padding.

    A text that is too long loses its last tokens but keeps the end token, and is logged.
    """
    ids = np.full((len(texts), context_length), tokenizer.pad_id, np.int32)
    if not len(texts):
        return ids
    for row, text, tokens in zip(ids, texts, tokenizer.encode(list(texts)), strict=True):
        if len(tokens) > context_length:
            logging.warning(
                "%r is %d tokens long and was cut to %d", text, len(tokens), context_length
            )
            tokens = [*tokens[: context_length - 1], tokens[-1]]
        row[: len(tokens)] = tokens
    return ids
