"""A byte-pair vocabulary in CLIP's layout, learnt from a list of captions."""

import collections
import itertools
import json
import pathlib
import re

from must_jax.convert.bpe import END, START, byte_symbols

END_OF_WORD = "</w>"

_PIECE = re.compile(r"[a-z]+|[0-9]|[^\sa-z0-9]+")


def _join(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    joined: list[str] = []
    for symbol in word:
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return tuple(joined)


def learn_merges(captions: list[str], *, count: int) -> list[tuple[str, str]]:
    """The `count` (or fewer) merges of the most frequent neighbours in ASCII captions.

    Ties go to the pair that sorts first.
    """
    words: collections.Counter[tuple[str, ...]] = collections.Counter()
    for caption in captions:
        for piece in _PIECE.findall(caption.lower()):
            words[(*piece[:-1], piece[-1] + END_OF_WORD)] += 1
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: collections.Counter[tuple[str, str]] = collections.Counter()
        for word, times in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += times
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        joined: collections.Counter[tuple[str, ...]] = collections.Counter()
        for word, times in words.items():
            joined[_join(word, best)] += times
        words = joined
    return merges


def write_tokenizer(
    folder: pathlib.Path, captions: list[str], *, num_merges: int, context_length: int
) -> None:
    """Writes the files that `CLIPTokenizer.from_pretrained(folder)` reads."""
    merges = learn_merges(captions, count=num_merges)
    symbols = byte_symbols()
    tokens = [
        *symbols,
        *(symbol + END_OF_WORD for symbol in symbols),
        *("".join(pair) for pair in merges),
        START,
        END,
    ]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    special = {
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
    }
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": context_length,
        "do_lower_case": True,
        **special,
    }
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
