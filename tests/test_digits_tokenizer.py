import json
import sys
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from digits import bpe, captions, model  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    bpe.write_tokenizer(
        folder, captions.corpus(), num_merges=1000, context_length=model.CONTEXT_LENGTH
    )
    return folder


def test_vocabulary_is_whole(folder):
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    vocabulary = json.loads((folder / "vocab.json").read_text("utf-8"))
    assert len(tokenizer) == len(vocabulary)
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert tokenizer.eos_token_id == len(vocabulary) - 1
    assert tokenizer.bos_token_id == len(vocabulary) - 2


@pytest.mark.parametrize("text", ["a photo of the number seven", "zebra ümlaut 数 42"])
def test_text_survives_the_round_trip(folder, text):
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")


def test_captions_fit_the_context_and_keep_whole_words(folder):
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    assert (
        max(len(ids) for ids in tokenizer(captions.corpus())["input_ids"]) <= model.CONTEXT_LENGTH
    )
    for word in captions.WORDS:
        assert len(tokenizer(word)["input_ids"]) == 3


def test_most_frequent_pair_merges_first():
    assert bpe.learn_merges(["ab ab ab", "ac"], count=1) == [("a", "b</w>")]
    assert bpe.learn_merges(["ba ca"], count=1) == [("b", "a</w>")]


def test_shipped_tokenizer_is_the_one_that_the_program_writes(folder):
    shipped = ROOT / "assets" / "digits_clip"
    for name in ["vocab.json", "merges.txt", "tokenizer_config.json"]:
        assert (shipped / name).read_bytes() == (folder / name).read_bytes()
