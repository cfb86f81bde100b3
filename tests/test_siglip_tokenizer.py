"""SigLIP's two tokenizers against transformers' own."""

import base64
import dataclasses
import json

import numpy as np
import pytest
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from siglip_checkpoints import GEMMA_TOKENS, PIECES, write_gemma, write_spiece

from must_jax.errors import UserError
from must_jax.models import TextSpec
from must_jax.tokenizer import canonicalize, load_tokenizer, tokenize

SPEC = TextSpec(
    width=8,
    depth=1,
    num_heads=1,
    mlp_dim=8,
    activation="gelu_tanh",
    layer_norm_eps=1e-6,
    vocab_size=PIECES,
    context_length=64,
    eot_token_id=None,
    pooling="last_token",
    is_causal=False,
    proj_bias=True,
)
GEMMA_SPEC = dataclasses.replace(SPEC, vocab_size=GEMMA_TOKENS)
TEXTS = [
    "A photo, of a 'CAT'!",
    "  the  BIG\tdog ...  ",
    "",
    "zebra-seven (sits) on {the} mat. é ÉTÉ 7",
    "Ж 猫",
    "cat " * 80,
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of either kind, and transformers' tokenizer of it."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("siglip", "siglip2"))
    return {
        "siglip": (one, write_spiece(one), SPEC),
        "siglip2": (two, write_gemma(two), GEMMA_SPEC),
    }


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_ids_are_those_of_transformers(folders, kind):
    folder, reference, spec = folders[kind]
    tokenizer = load_tokenizer(folder, spec=spec)
    ours = tokenize(TEXTS, tokenizer=tokenizer, context_length=64)
    theirs = reference(TEXTS, padding="max_length", max_length=64, truncation=True)["input_ids"]
    assert ours.dtype == np.int32
    assert ours.tolist() == theirs
    # The texts are told apart, and the long one ends in an end token.
    assert len({tuple(row) for row in theirs}) == len(TEXTS)
    assert ours[-1, -1] == tokenizer.end_id


def test_padding_is_the_tokenizers_own(folders):
    for kind, end, pad in (("siglip", 1, 1), ("siglip2", 1, 0)):
        folder, _, spec = folders[kind]
        ids = tokenize(["cat"], tokenizer=load_tokenizer(folder, spec=spec), context_length=64)[
            0
        ].tolist()
        assert ids.index(end) < 10
        assert set(ids[ids.index(end) + 1 :]) == {pad}


def test_the_files_name_another_padding(tmp_path):
    write_spiece(tmp_path)
    # As older files write it: a token with its flags.
    special = {"pad_token": {"content": "<pad>", "lstrip": True}}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    assert load_tokenizer(tmp_path, spec=SPEC).pad_id == 0


def test_text_is_lower_case_whatever_the_file_does(folders, tmp_path):
    folder, _, spec = folders["siglip2"]
    saved = json.loads((folder / "tokenizer.json").read_text())
    saved["normalizer"] = saved["normalizer"]["normalizers"][1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GemmaTokenizer"}')
    upper, lower = (
        load_tokenizer(path, spec=spec).encode(["A Cat"]) for path in (tmp_path, folder)
    )
    assert upper == lower


def test_the_first_siglips_text_in_a_tokenizer_json_has_no_punctuation(folders, tmp_path):
    folder, _, spec = folders["siglip2"]
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    special = {"tokenizer_class": "SiglipTokenizer", "pad_token": "<pad>", "eos_token": "<eos>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(special))
    bare, full = load_tokenizer(tmp_path, spec=spec).encode(["the big dog", "The big, dog!"])
    assert bare == full


def test_canonical_text():
    assert canonicalize(" The  “big”\n(DOG), it's… ") == "the “big” dog its…"


def test_sentinels_have_no_rows(tmp_path):
    write_spiece(tmp_path)
    file = tmp_path / "spiece.model"
    model = ModelProto.FromString(file.read_bytes())
    for i in range(3):
        model.pieces.add(piece=f"▁<extra_id_{i}>", score=0.0, type=4)
    file.write_bytes(model.SerializeToString())
    tokenizer = load_tokenizer(tmp_path, spec=SPEC)
    assert tokenizer.num_tokens == PIECES
    assert max(tokenizer.encode(["a cat <extra_id_1>"])[0]) < PIECES


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("spiece.model", None, "no tokenizer; expected spiece.model or tokenizer.json"),
        ("spiece.model", "no model", "cannot be loaded"),
        ("tokenizer_config.json", "{", "cannot be loaded"),
        ("tokenizer_config.json", '{"pad_token": "<none>"}', "pad_token '<none>' is not in the"),
        ("tokenizer_config.json", '{"do_lower_case": false}', "do_lower_case is false"),
    ],
)
def test_unusable_files_are_refused(tmp_path, name, content, message):
    write_spiece(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        load_tokenizer(tmp_path, spec=SPEC)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def _replace(content, **pattern):
    return {"type": "Replace", "pattern": pattern, "content": content}


def _in_turn(*steps):
    return {"type": "Sequence", "normalizers": list(steps)}


def _precompiled(charsmap):
    return {
        "type": "Precompiled",
        "precompiled_charsmap": base64.b64encode(charsmap).decode(),
    }


LONG = {"content": "x" * 2000, "pattern": {"String": "a"}}  # what becomes of a letter
LARGE = bytes(2**20 + 1)
FLOOD = bytes(4) + b"x" * 65 + b"\0"
CUT_OFF = b"\x09\0\0\0" + bytes(8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # 2 ** 12 letters for each "a".
        (
            {"normalizer": {"type": "Sequence", "normalizers": [_replace("aa", String="a")] * 12}},
            "make a text 4.1e[+]03 times as long",
        ),
        ({"normalizer": _replace("x" * 2000, Regex=".")}, "make a text 2e[+]03 times as long"),
        ({"normalizer": _replace("x", String="")}, "the pattern '' is none"),
        ({"normalizer": _replace("x", Regex="(a+)+b")}, "might take hours"),
        ({"normalizer": _replace("x", Regex="a*a*a*a*b")}, "might take hours"),
        (
            {
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [
                        {
                            "type": "Split",
                            "pattern": {"Regex": r"(\s|\s)+x"},
                            "behavior": "Isolated",
                            "invert": False,
                        }
                    ],
                }
            },
            "might take hours",
        ),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 17}}, "18 steps"),
        # The library goes by the type and passes over keys that it doesn't know.
        (
            {"normalizer": LONG | {"type": "Replace", "normalizers": [{"type": "Lowercase"}]}},
            "a normalizer of the type Replace has no 'normalizers'",
        ),
        (
            {"normalizer": _in_turn({"type": "NFC"}) | {"pretokenizers": []}},
            "a normalizer of the type Sequence has no 'pretokenizers'",
        ),
        (
            {
                "pre_tokenizer": {
                    "type": "Split",
                    "pattern": {"Regex": "(a|a)*$"},
                    "behavior": "Isolated",
                    "invert": False,
                    "pretokenizers": [{"type": "Whitespace"}],
                }
            },
            "a pre_tokenizer of the type Split has no 'pretokenizers'",
        ),
        ({"normalizer": LONG}, "of the type None is none that is known"),
        ({"normalizer": {"type": "Prepend", "prepend": "x" * 2000}}, "2e[+]03 times as long"),
        # Three letters for each, as the expression is found beside them.
        ({"normalizer": _in_turn(*[_replace("aa", Regex="x*")] * 7)}, "2.19e[+]03 times as long"),
        ({"normalizer": _in_turn(*[{"type": "NFKD"}] * 3)}, "5.83e[+]03 times as long"),
        (
            {
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [
                        {"type": "Metaspace", "replacement": "x", "prepend_scheme": "always"}
                    ]
                    * 11,
                }
            },
            "4.1e[+]03 times as long",
        ),
        ({"normalizer": _precompiled(LARGE)}, "1048577 bytes; 1048576 are the most"),
        ({"normalizer": _precompiled(FLOOD)}, "makes 65 letters of one; 64 are"),
        ({"normalizer": _precompiled(CUT_OFF)}, r"precompiled_charsmap is damaged \(cut off"),
        ({"normalizer": ["x"]}, "damaged"),
        ({"normalizer": {"type": "Sequence", "normalizers": "xy"}}, "damaged"),
    ],
)
def test_what_would_take_hours_gigabytes_or_chance_is_refused(folders, tmp_path, changes, message):
    _, spec = _gemma(folders, tmp_path, **changes)
    with pytest.raises(UserError, match=message) as error:
        load_tokenizer(tmp_path, spec=spec)
    assert str(tmp_path / "tokenizer.json") in str(error.value)


def test_dropout_is_refused(folders, tmp_path):
    saved, spec = _gemma(folders, tmp_path)
    _gemma(folders, tmp_path, model=saved["model"] | {"dropout": 0.5})
    with pytest.raises(UserError, match="its model has dropout"):
        load_tokenizer(tmp_path, spec=spec)


def test_what_siglips_files_do_to_a_text_is_no_harm(folders, tmp_path):
    """Lower case, no punctuation and single spaces, as SigLIP cleans a text."""
    punctuation = r"[!\"\#\$%\&'\(\)\*\+,\-\.:;=\?@\[\\\]\^_`\{\|\}\~]"
    steps = [
        {"type": "Lowercase"},
        _replace("", Regex=punctuation),
        _replace(" ", Regex=r"\s+"),
        {"type": "Strip", "strip_left": True, "strip_right": True},
        _replace(" ", Regex=" {2,}"),
        _replace("▁", String=" "),
    ]
    _, spec = _gemma(folders, tmp_path, normalizer={"type": "Sequence", "normalizers": steps})
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GemmaTokenizer"}')
    tidy, odd = load_tokenizer(tmp_path, spec=spec).encode(["the cat", " The  cat!"])
    assert tidy == odd


def test_a_vocabulary_that_makes_thousands_of_tokens_of_a_letter_is_refused(folders, tmp_path):
    steps = [_replace("b" * 9, String="a"), _replace("c" * 14, String="b")]
    _, spec = _gemma(folders, tmp_path, normalizer={"type": "Sequence", "normalizers": steps})
    with pytest.raises(UserError, match=r"is damaged and fails on a text \(it makes"):
        load_tokenizer(tmp_path, spec=spec).encode(["aaaa"])


def test_siglips_vocabulary_in_a_tokenizer_json_keeps_its_letters(folders, tmp_path):
    """As tools that convert `spiece.model` write it, with the keys of older and newer libraries."""
    model = ModelProto.FromString((folders["siglip"][0] / "spiece.model").read_bytes())
    charsmap = model.normalizer_spec.precompiled_charsmap
    steps = [
        {"type": "Lowercase"},
        _replace(" ", Regex=r"\s+"),
        {"type": "Strip", "strip_left": False, "strip_right": True},
        _precompiled(charsmap),
        _replace(" ", Regex=" {2,}"),
    ]
    for keys in (
        {"str_rep": "▁", "add_prefix_space": True},
        {"prepend_scheme": "always", "split": True},
    ):
        pieces = [
            {"type": "WhitespaceSplit"},
            {"type": "Metaspace", "replacement": "▁"} | keys,
        ]
        _, spec = _gemma(
            folders,
            tmp_path,
            normalizer=_in_turn(*steps),
            pre_tokenizer={"type": "Sequence", "pretokenizers": pieces},
        )
        plain, wide = load_tokenizer(tmp_path, spec=spec).encode(
            ["the cat", " The \uff43\uff41\uff54"]
        )
        assert plain == wide


def test_a_template_does_not_write_a_text_out_again(folders, tmp_path):
    saved, spec = _gemma(folders, tmp_path)
    once = load_tokenizer(tmp_path, spec=spec).encode(["the cat"])
    text = {"Sequence": {"id": "A", "type_id": 0}}
    again = saved["post_processor"] | {"single": [text] * 9}
    _gemma(folders, tmp_path, post_processor=again)
    assert load_tokenizer(tmp_path, spec=spec).encode(["the cat"]) == once


@pytest.mark.parametrize(
    ("charsmap", "message"),
    [
        (LARGE, "precompiled_charsmap has 1048577 bytes; 1048576 are the most"),
        (FLOOD, "precompiled_charsmap makes 65 letters of one; 64 are the most"),
        (CUT_OFF, r"precompiled_charsmap is damaged \(cut off"),
    ],
)
def test_a_model_that_makes_a_flood_of_a_letter_is_refused(tmp_path, charsmap, message):
    write_spiece(tmp_path)
    file = tmp_path / "spiece.model"
    model = ModelProto.FromString(file.read_bytes())
    model.normalizer_spec.precompiled_charsmap = charsmap
    file.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=message) as error:
        load_tokenizer(tmp_path, spec=SPEC)
    assert str(error.value).startswith(f"{file}: ")


def test_a_model_of_pieces_longer_than_words_is_refused(tmp_path):
    write_spiece(tmp_path)
    file = tmp_path / "spiece.model"
    model = ModelProto.FromString(file.read_bytes())
    model.pieces.add(piece="a" * 97, score=-1.0)
    file.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="a piece of 97 bytes; 96 are the most") as error:
        load_tokenizer(tmp_path, spec=SPEC)
    assert str(error.value).startswith(f"{file}: ")


def _gemma(folders, tmp_path, **changes):
    folder, _, spec = folders["siglip2"]
    saved = json.loads((folder / "tokenizer.json").read_text()) | changes
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    return saved, spec


def test_another_checkpoints_tokenizer_is_refused(folders):
    with pytest.raises(UserError, match="400 tokens, the checkpoint's vocabulary 45"):
        load_tokenizer(folders["siglip2"][0], spec=SPEC)
    clip = dataclasses.replace(SPEC, pooling="end_token", eot_token_id=1)
    with pytest.raises(UserError, match="no tokenizer; expected tokenizer"):
        load_tokenizer(folders["siglip"][0], spec=clip)
