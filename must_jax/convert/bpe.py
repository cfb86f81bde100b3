"""Turns the vocabulary file of OpenAI's CLIP into Hugging Face tokenizer files."""

import gzip
import json
import zlib
from pathlib import Path

from must_jax.errors import UserError

OPENAI_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
START = "<|startoftext|>"
END = "<|endoftext|>"
_WORD_END = "</w>"
_NUM_BYTES = 256
_LARGEST = 2**24  # bytes, unpacked: several times OpenAI's
# The file lists more merges than CLIP was trained with.
_NUM_MERGES = 49152 - _NUM_BYTES - 2


def byte_symbols() -> list[str]:
    """One printable character a byte, in the order of CLIP's vocabulary.

    Bytes that print stand for themselves; the others take the characters from U+0100 on (byte-level
    BPE of Radford et al., 2019).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = _NUM_BYTES - len(printable)
    return [chr(byte) for byte in printable] + [chr(_NUM_BYTES + i) for i in range(others)]


def write_tokenizer(vocabulary: Path, folder: Path) -> None:
    """Writes Hugging Face tokenizer files made of OpenAI's vocabulary file into a folder.

    The vocabulary is the byte symbols, the same at the end of a word, one entry a merge, and the
    two marks of a text's start and end.

    Raises:
      UserError: the file is unreadable or no such vocabulary.
    """
    try:
        with gzip.open(vocabulary) as file:
            lines = file.read(_LARGEST).decode("utf-8").split("\n")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{vocabulary}: not a readable vocabulary file ({error})") from error
    merges = [line.split() for line in lines[1 : _NUM_MERGES + 1] if line.strip()]
    if not merges or any(len(pair) != 2 for pair in merges):
        raise UserError(f"{vocabulary}: not OpenAI's vocabulary; expected two symbols a line")
    symbols = byte_symbols()
    tokens = symbols + [symbol + _WORD_END for symbol in symbols]
    tokens += ["".join(pair) for pair in merges] + [START, END]
    ids = {token: i for i, token in enumerate(tokens)}
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    files = {
        "vocab.json": json.dumps(ids, ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges), ""]),
        "special_tokens_map.json": json.dumps(special, indent=2),
        "tokenizer_config.json": json.dumps(
            {"tokenizer_class": "CLIPTokenizer", "do_lower_case": True, **special}, indent=2
        ),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
