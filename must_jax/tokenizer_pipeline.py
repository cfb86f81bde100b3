"""What a tokenizer's file says is done to a text, until it is cut into tokens."""

import base64
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from must_jax.errors import UserError
from must_jax.local_files import read_text

_MAX_STEPS = 16  # what transformers writes for SigLIP 2 has three
_MAX_GROWTH = 128  # of a text's length, by all steps together; SigLIP's have 72
_MAX_PATTERN = 2**10  # letters; CLIP's has 90
_MAX_AFFIX = 16  # letters; CLIP's is "</w>"
# Bytes; SentencePiece's own limit is 16 letters. A text is compared with all pieces at each letter.
_MAX_PIECE = 96
# Bytes and letters; NFKC's has 240,000, and makes 18 letters of U+FDFA.
_MAX_CHARSMAP, _MAX_LETTERS = 2**20, 64
# Letters of a pattern that stand for one character; others after a backslash may stand for none, or
# for the whole pattern once more, which takes a time that doubles with each letter.
_ONE_CHARACTER = re.compile(
    r"\\p\{\^?\w+\}|\\[dDhHnrsStwW]|\\[^\w\s]|\[\^?+(?:\\.|[^\[\]\\])+\]", re.DOTALL
)
# Characters, of which the last may be repeated. A repeat before others is tried anew at each letter
# that it went over, groups within each other more often yet.
_ALTERNATIVE = re.compile(r"([^\\()\[\]{}*+?|]*)([*+?]|\{\d?,?\d?\})?")
# Where a sequence has its steps, and the keys that a type of step has. The library passes over any
# other: a file with such keys could look like one thing here and be another there.
_SEQUENCES = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}
_KEYS: dict[str, set[str]] = {
    "BertNormalizer": {"clean_text", "handle_chinese_chars", "strip_accents", "lowercase"},
    "BertPreTokenizer": set(),
    "ByteLevel": {"add_prefix_space", "trim_offsets", "use_regex"},
    "CharDelimiterSplit": {"delimiter"},
    "Digits": {"individual_digits"},
    "FixedLength": {"length"},
    "Lowercase": set(),
    # `str_rep` and `add_prefix_space` are of files from before 2023.
    "Metaspace": {"replacement", "prepend_scheme", "split", "str_rep", "add_prefix_space"},
    "NFC": set(),
    "NFD": set(),
    "NFKC": set(),
    "NFKD": set(),
    "Nmt": set(),
    "Precompiled": {"precompiled_charsmap"},
    "Prepend": {"prepend"},
    "Punctuation": {"behavior"},
    "Replace": {"pattern", "content"},
    "Split": {"pattern", "behavior", "invert"},
    "Strip": {"strip_left", "strip_right"},
    "StripAccents": set(),
    "UnicodeScripts": set(),
    "Whitespace": set(),
    "WhitespaceSplit": set(),
}
# What SigLIP, SigLIP 2 and CLIP have. WordPiece takes the cube of a word's length.
_MODEL_KEYS = {
    "BPE": {
        *("vocab", "merges", "unk_token", "fuse_unk", "byte_fallback", "ignore_merges", "dropout"),
        *("continuing_subword_prefix", "end_of_word_suffix"),
    },
    "Unigram": {"vocab", "unk_id", "byte_fallback"},
}
# Letters that become of one, at most; the normal forms' are UAX #15's.
_GROWTH = {
    "BertNormalizer": 8.0,  # NFD's 4, in lower case
    "ByteLevel": 5.0,  # its bytes, and a space before them
    "Lowercase": 2.0,
    "Metaspace": 2.0,
    "NFC": 3.0,
    "NFD": 4.0,
    "NFKC": 18.0,
    "NFKD": 18.0,
}


def check_pipeline(path: Path) -> None:
    """Refuses what would make gigabytes, hours or chance of a text.

    Replacements multiply a text where they follow each other, patterns can take a time that doubles
    with each letter and models the cube of a word's length, and BPE's dropout cuts each time anew.

    Args:
      path: of a `tokenizer.json`.

    Raises:
      UserError: it does, or it can't be read.
    """
    try:
        told = json.loads(read_text(path))
        steps = [step for part in _SEQUENCES for step in _steps(told.get(part), part, path)]
        _check_model(told["model"], path)
        if len(steps) > _MAX_STEPS:
            raise UserError(f"{path}: {len(steps)} steps prepare a text; {_MAX_STEPS} are the most")
        growth = 1.0
        for step in steps:
            growth *= _growth(step, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, AttributeError, TypeError, LookupError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error!r:.200})") from error
    if growth > _MAX_GROWTH:
        raise UserError(f"{path}: its replacements make a text {growth:.3g} times as long")


def check_pieces(pieces: Iterable[str], path: Path) -> None:
    """Refuses pieces of texts that are longer than words.

    Raises:
      UserError: one is.
    """
    longest = max((len(piece.encode()) for piece in pieces), default=0)
    if longest > _MAX_PIECE:
        raise UserError(
            f"{path}: its vocabulary has a piece of {longest} bytes; {_MAX_PIECE} are the most"
        )


def check_charsmap(charsmap: bytes, path: Path) -> int:
    """The most letters that SentencePiece's map of letters makes of one.

    Its first four bytes count those of a trie, which finds strings that end in a NUL behind it.

    Args:
      charsmap: the map, compiled.
      path: of the file that it is in.

    Raises:
      UserError: it is larger than that of any language, or makes a flood of one letter.
    """
    trie = int.from_bytes(charsmap[:4], "little")
    if len(charsmap) > _MAX_CHARSMAP:
        raise UserError(
            f"{path}: its precompiled_charsmap has {len(charsmap)} bytes; {_MAX_CHARSMAP} are the "
            "most"
        )
    # The libraries make room for the trie before they see that it isn't there.
    if 4 + trie > len(charsmap):
        raise UserError(f"{path}: its precompiled_charsmap is damaged (cut off)")
    strings = charsmap[4 + trie // 4 * 4 :].split(b"\0")
    longest = max(len(string.decode(errors="replace")) for string in strings)
    if longest > _MAX_LETTERS:
        raise UserError(
            f"{path}: its precompiled_charsmap makes {longest} letters of one; {_MAX_LETTERS} are "
            "the most"
        )
    return max(1, longest)


def _check_model(model: dict[str, Any], path: Path) -> None:
    """Refuses a model that might take hours, or that the library takes for another.

    Raises:
      UserError: it does.
    """
    # Old files don't tell it; the library then goes by the keys.
    kind = model.get("type", "BPE" if "merges" in model else "Unigram")
    if kind not in _MODEL_KEYS:
        raise UserError(f"{path}: a model of the type {kind!r:.100}; expected BPE or Unigram")
    unknown = sorted(model.keys() - _MODEL_KEYS[kind] - {"type"})
    if unknown:
        raise UserError(f"{path}: a model of the type {kind} has no {unknown[0]!r:.100}")
    if model.get("dropout"):
        raise UserError(f"{path}: its model has dropout, with which no text is cut twice alike")
    if kind == "Unigram":
        check_pieces((piece for piece, _ in model["vocab"]), path)
        return
    # Without them, transformers tries all ways to cut each token.
    if type(model.get("merges")) is not list:
        raise UserError(f"{path}: its model has no merges; the file is damaged")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if len(model.get(name) or "") > _MAX_AFFIX:
            raise UserError(f"{path}: its model's {name} has more than {_MAX_AFFIX} letters")


def _steps(told: Any, part: str, path: Path) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer, those within sequences too.

    Raises:
      UserError: the library has no step of such keys.
    """
    pending = [] if told is None else [told]
    while pending:
        step = pending.pop()
        kind = step.get("type")
        known = {_SEQUENCES[part]} if kind == "Sequence" else _KEYS.get(kind)
        if known is None:
            raise UserError(f"{path}: a {part} of the type {kind!r:.100} is none that is known")
        unknown = sorted(step.keys() - known - {"type"})
        if unknown:
            raise UserError(f"{path}: a {part} of the type {kind} has no {unknown[0]!r:.100}")
        if kind == "Sequence":
            pending += step[_SEQUENCES[part]]
        else:
            yield step


def _growth(step: dict[str, Any], path: Path) -> float:
    """How many times as long a step makes a text, at most.

    Raises:
      UserError: it might take hours, or gigabytes.
    """
    if step["type"] == "Precompiled":
        charsmap = base64.b64decode(step["precompiled_charsmap"], validate=True)
        return check_charsmap(charsmap, path)
    if step["type"] == "Prepend":
        return 1.0 + len(step["prepend"])
    if step["type"] not in ("Replace", "Split"):
        return _GROWTH.get(step["type"], 1.0)
    literal, expression = step["pattern"].get("String"), step["pattern"].get("Regex")
    if literal is None:
        fewest = _fewest(expression)
    else:
        fewest = len(literal) if 0 < len(literal) <= _MAX_PATTERN else None
    if fewest is None:
        raise UserError(
            f"{path}: the pattern {literal or expression or ''!r:.200} is none that tokenizers "
            "of this family have, and might take hours"
        )
    content = len(step.get("content") or "")
    # An expression that stands for nothing is found beside every letter.
    return max(1.0, content / fewest) if fewest else 1.0 + content


def _fewest(expression: str) -> int | None:
    """0 where an expression may stand for nothing, 1 where for a letter or more.

    None: it might take more time than a text is long.
    """
    if len(expression) > _MAX_PATTERN:
        return None
    fewest = 1
    for alternative in _ONE_CHARACTER.sub("x", expression).split("|"):
        match = _ALTERNATIVE.fullmatch(alternative)
        if match is None:
            return None
        letters, repeat = match.groups(default="")
        if repeat and not re.match(r"[+]|\{[1-9]", repeat):
            letters = letters[:-1]
        if not letters.strip("^$"):
            fewest = 0
    return fewest
