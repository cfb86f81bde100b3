"""What a `tokenizer.json` may say is done to a text."""

import json

import pytest
from tokenizers import Tokenizer

from must_jax.errors import UserError
from must_jax.tokenizer_pipeline import check_pipeline

VOCABULARY = {"<unk>": 0, "a": 1, "b": 2, "ab": 3}
BPE = {"type": "BPE", "vocab": VOCABULARY, "merges": [["a", "b"]], "unk_token": "<unk>"}
UNIGRAM = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]}
WORD_PIECE = {
    "unk_token": "<unk>",
    "continuing_subword_prefix": "#",
    "max_input_chars_per_word": 10**9,
    "vocab": VOCABULARY,
}
CLIPS_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def without(model, *names):
    return {name: value for name, value in model.items() if name not in names}


def write(folder, *, model=BPE, steps=()):
    path = folder / "tokenizer.json"
    normalizer = {"type": "Sequence", "normalizers": list(steps)}
    told = {"version": "1.0", "added_tokens": [], "normalizer": normalizer, "model": model}
    path.write_text(json.dumps(told))
    return path


def replace(content, **pattern):
    return {"type": "Replace", "pattern": pattern, "content": content}


def assert_refused(path, message):
    with pytest.raises(UserError, match=message) as error:
        check_pipeline(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "model",
    [
        BPE,
        UNIGRAM,
        without(BPE, "type"),
        without(UNIGRAM, "type"),
        # All that the library writes, with CLIP's affix.
        BPE
        | {
            "dropout": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": VOCABULARY | {"b</w>": 4, "ab</w>": 5},
            "merges": ["a b</w>"],
        },
        UNIGRAM | {"byte_fallback": True},
    ],
)
def test_models_of_these_families_are_read(model, tmp_path):
    path = write(tmp_path, model=model)
    check_pipeline(path)
    kind = type(Tokenizer.from_file(str(path)).model).__name__
    assert kind == ("BPE" if "merges" in model else "Unigram")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (WORD_PIECE | {"type": "WordPiece"}, "of the type 'WordPiece'; expected BPE or Unigram"),
        (WORD_PIECE, "a model of the type Unigram has no 'continuing_subword_prefix'"),
        # The library takes it for the other where its merges are none of the vocabulary.
        (WORD_PIECE | {"merges": [["x", "y"]]}, "the type BPE has no 'max_input_chars_per_word'"),
        ({"type": "WordLevel", "vocab": VOCABULARY, "unk_token": "<unk>"}, "type 'WordLevel'"),
        (BPE | {"type": None}, "of the type None"),
        (BPE | {"type": ["BPE"]}, "damaged"),
        (BPE | {"merges": None}, "its model has no merges"),
        (without(BPE, "merges"), "its model has no merges"),
        (BPE | {"continuing_subword_prefix": "#" * 17}, "prefix has more than 16 letters"),
        (BPE | {"end_of_word_suffix": "#" * 17}, "end_of_word_suffix has more than 16 letters"),
        (UNIGRAM | {"vocab": [["a" * 97, 0.0]]}, "a piece of 97 bytes; 96 are the most"),
        (UNIGRAM | {"vocab": [["\u96ea" * 33, 0.0]]}, "a piece of 99 bytes; 96 are the most"),
        (UNIGRAM | {"vocab": ["a"]}, "damaged"),
        (None, "damaged"),
    ],
)
def test_other_models_are_refused(model, message, tmp_path):
    assert_refused(write(tmp_path, model=model), message)


def test_a_file_without_a_model_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    assert_refused(tmp_path / "tokenizer.json", "damaged")


@pytest.mark.parametrize(
    "pattern",
    [
        # The whole of it within itself, and what stands for nothing.
        {"Regex": r"a\g<0>|aa\g<0>|b"},
        {"Regex": r"\K"},
        {"Regex": r"\b"},
        # The square of the time, as all letters are looked at from each.
        {"Regex": "a+b"},
        {"Regex": r"\s+$"},
        {"Regex": "a{99,}"},
        {"Regex": "a+?"},
        # A class of another end than it seems to have.
        {"Regex": "[]a](a+)+b[]"},
        {"Regex": "[^][a+b]"},
        {"Regex": "[^][a+b]]"},
        {"Regex": "a" * 1025},
        {"String": "a" * 1025},
    ],
)
def test_patterns_that_may_take_hours_are_refused(pattern, tmp_path):
    assert_refused(write(tmp_path, steps=[replace("", **pattern)]), "none that tokenizers of this")


@pytest.mark.parametrize(
    ("expression", "times"),
    [
        (CLIPS_WORDS, 100),
        (r"\s+", 100),
        (" {2,}", 100),
        (r"[!\"\#\$%\&'\(\)\*\+,\-\.:;=\?@\[\\\]\^_`\{\|\}\~]", 100),
        ("^\u2581", 100),
        (r"a\+", 100),
        # It may be found beside every letter.
        ("a*", 101),
        ("a|b?", 101),
        ("a||b", 101),
        ("a{0,3}", 101),
        ("a{,3}", 101),
        ("^", 101),
        ("", 101),
    ],
)
def test_an_expression_grows_a_text_by_what_it_finds(expression, times, tmp_path):
    once = replace("x" * 100, Regex=expression)
    check_pipeline(write(tmp_path, steps=[once]))
    assert_refused(
        write(tmp_path, steps=[once, replace("xx", Regex=".")]), f"a text {2 * times} times as long"
    )
    found = json.loads(Tokenizer.from_file(str(tmp_path / "tokenizer.json")).to_str())
    assert found["normalizer"]["normalizers"][0] == once  # the library knows it, too
