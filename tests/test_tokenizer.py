import base64
import dataclasses
import json
import pathlib

import numpy as np
import pytest
from clip_checkpoints import LETTERS, write_tokenizer
from transformers import CLIPTokenizer

from must_jax.errors import UserError
from must_jax.models import TextSpec
from must_jax.tokenizer import load_tokenizer, tokenize

SPEC = TextSpec(
    width=8,
    depth=1,
    num_heads=1,
    mlp_dim=8,
    activation="quick_gelu",
    layer_norm_eps=1e-5,
    vocab_size=99,
    context_length=8,
    eot_token_id=98,
)
START, END = 97, 98


@pytest.fixture
def folder(tmp_path):
    write_tokenizer(tmp_path, 99)
    return tmp_path


@pytest.fixture
def tokenizer(folder):
    return load_tokenizer(folder, spec=SPEC)


def letter(character, *, last=False):
    return LETTERS.index(character) + (len(LETTERS) if last else 0)


def test_start_letters_end_and_zeros(tokenizer):
    ids = tokenize(["ab C", ""], tokenizer=tokenizer, context_length=8)
    assert ids.dtype == np.int32
    ab = [letter("a"), letter("b", last=True)]
    c = letter("c", last=True)
    assert ids.tolist() == [[START, *ab, c, END, 0, 0, 0], [START, END, 0, 0, 0, 0, 0, 0]]


def test_no_texts(tokenizer):
    assert tokenize([], tokenizer=tokenizer, context_length=8).shape == (0, 8)


def test_a_long_text_keeps_its_end_token_and_is_reported(tokenizer, caplog):
    fits, long = "abcdef", "abcdefg"
    with caplog.at_level("WARNING", logger="absl"):
        ids = tokenize([fits], tokenizer=tokenizer, context_length=8)
        assert not caplog.messages
        cut = tokenize([long, "a"], tokenizer=tokenizer, context_length=8)
    assert ids[0, 0] == START
    assert ids[0, -1] == END
    assert cut[0].tolist() == [START, *(letter(c) for c in "abcdef"), END]
    assert cut[1].tolist() == [START, letter("a", last=True), END, 0, 0, 0, 0, 0]
    [message] = [m for m in caplog.messages if "cut" in m]
    assert "'abcdefg' is 9 tokens long and was cut to 8" in message


def test_transformers_does_not_warn_of_what_is_cut(folder, capfd):
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 8}')
    tokenize(["abcdefghij"], tokenizer=load_tokenizer(folder, spec=SPEC), context_length=8)
    assert "indexing errors" not in capfd.readouterr().err


def test_a_tokenizer_saved_by_transformers_is_the_same(tokenizer, folder, tmp_path):
    CLIPTokenizer.from_pretrained(str(folder), local_files_only=True).save_pretrained(
        tmp_path / "saved"
    )
    assert not (tmp_path / "saved" / "merges.txt").exists()
    again = load_tokenizer(tmp_path / "saved", spec=SPEC)
    texts = ["ab c.", "7 zebra", "<|endoftext|>"]
    ours, theirs = (
        tokenize(texts, tokenizer=t, context_length=16).tolist() for t in (tokenizer, again)
    )
    assert ours == theirs


def test_steps_that_are_loaded_and_not_used_are_looked_at(folder):
    CLIPTokenizer.from_pretrained(str(folder), local_files_only=True).save_pretrained(folder)
    file = folder / "tokenizer.json"
    saved = json.loads(file.read_text())
    charsmap = base64.b64encode(b"\x09\0\0\0" + bytes(8)).decode()
    saved["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": charsmap}
    file.write_text(json.dumps(saved))
    with pytest.raises(UserError, match=r"precompiled_charsmap is damaged \(cut off") as error:
        load_tokenizer(folder, spec=SPEC)
    assert str(error.value).startswith(f"{file}: ")


def test_damage_that_a_text_alone_shows_is_refused(folder):
    (folder / "tokenizer_config.json").write_text('{"model_max_length": "77"}')
    with pytest.raises(UserError, match=r"is damaged and fails on a text \(.+\)") as error:
        load_tokenizer(folder, spec=SPEC)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_missing_files_are_refused(folder, missing):
    # transformers alone would make a tokenizer of two tokens of what is left.
    (folder / missing).unlink()
    with pytest.raises(UserError, match="no tokenizer"):
        load_tokenizer(folder, spec=SPEC)


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"a": "b"}'])
def test_damaged_files_are_refused(folder, content):
    (folder / "vocab.json").write_text(content)
    with pytest.raises(UserError) as error:
        load_tokenizer(folder, spec=SPEC)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 100, "eot_token_id": 99}, "99 tokens, the checkpoint's vocabulary 100"),
        ({"eot_token_id": 5}, "ends a text with token 98, the checkpoint's text tower looks for 5"),
    ],
)
def test_another_checkpoints_tokenizer_is_refused(folder, change, message):
    with pytest.raises(UserError, match=message):
        load_tokenizer(folder, spec=dataclasses.replace(SPEC, **change))


def test_the_largest_id_has_to_be_the_end(folder):
    load_tokenizer(folder, spec=dataclasses.replace(SPEC, eot_token_id=None))
    vocabulary = folder / "vocab.json"
    text = vocabulary.read_text().replace(": 98", ": x").replace(": 97", ": 98")
    vocabulary.write_text(text.replace(": x", ": 97"))
    with pytest.raises(UserError, match="token 97, the checkpoint's text tower looks for 98"):
        load_tokenizer(folder, spec=dataclasses.replace(SPEC, eot_token_id=None))


def test_the_network_is_never_asked(folder):
    with pytest.raises(UserError):
        load_tokenizer(pathlib.Path("openai/clip-vit-base-patch32"), spec=SPEC)
