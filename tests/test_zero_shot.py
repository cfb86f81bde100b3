"""The zero-shot classifier against the published numbers and against torch."""

import dataclasses
import pathlib

import numpy as np
import pytest
import torch
from clip_checkpoints import TINY, make_clip, save_clip, write_tokenizer
from transformers import CLIPTokenizer

from must_jax.convert.conversion import read_checkpoint
from must_jax.convert.openai import LAYOUT
from must_jax.convert.source import SourceCheckpoint, read_params
from must_jax.errors import UserError
from must_jax.models import ClipSpec, TextSpec, VisionSpec
from must_jax.tokenizer import load_tokenizer, tokenize
from must_jax.zero_shot import average_texts, build_classifier, embed_texts

GOLDEN = pathlib.Path(__file__).parent / "golden"
TOWER = {
    "width": 64,
    "depth": 2,
    "num_heads": 1,
    "mlp_dim": 256,
    "activation": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
GOLDEN_SPEC = ClipSpec(
    vision=VisionSpec(**TOWER, image_size=32, patch_size=8),
    text=TextSpec(**TOWER, vocab_size=49408, context_length=77, eot_token_id=None),
    embed_dim=32,
    logit_scale=100.0,
    image_mean=(0.0,) * 3,
    image_std=(1.0,) * 3,
)


def golden_text_params(name):
    """The golden text tower by way of OpenAI's table; tokens that no prompt uses are NaN."""
    with np.load(GOLDEN / f"{name}_text.npz") as arrays:
        source = dict(arrays)
    used, rows = source.pop("used_token_ids"), source.pop("used_token_rows")
    source["token_embedding.weight"] = np.zeros((49408, 64), np.float32)
    rules = tuple(rule for rule in LAYOUT.rules if rule.path.startswith("text/"))
    layout = dataclasses.replace(LAYOUT, rules=rules)
    checkpoint = SourceCheckpoint(layout=layout, tensors=source, spec=GOLDEN_SPEC)
    params = read_params(checkpoint, where=name)["text"]
    # Conversion refuses what isn't finite, so that it enters here.
    params["token_embed"][:] = np.nan
    params["token_embed"][used] = rows
    return params


@pytest.mark.parity
@pytest.mark.parametrize("name", ["k10", "k520"])
def test_golden_classifier(name):
    with np.load(GOLDEN / f"{name}_main.npz") as arrays:
        tokens, embeds, expected = (arrays[k] for k in ("tokens", "text_embeds", "classifier"))
    flat = tokens.reshape(-1, 77)
    flat_ours = embed_texts(flat, spec=GOLDEN_SPEC, text_params=golden_text_params(name))
    ours = flat_ours.reshape(*tokens.shape[:2], -1)
    embeds = embeds / np.linalg.norm(embeds, axis=-1, keepdims=True)
    # Entries of unit vectors, each after some hundred roundings of 6e-8 that mostly cancel.
    np.testing.assert_allclose(ours, embeds, rtol=0, atol=1e-6)
    classifier = average_texts(flat_ours, [tokens.shape[1]] * tokens.shape[0])
    assert classifier.dtype == np.float32
    np.testing.assert_allclose(classifier, expected, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A torch CLIP, and what of it converts: the spec, the text parameters, the tokenizer."""
    model = make_clip(**TINY, seed=5)
    folder = save_clip(model, tmp_path_factory.mktemp("clip"))
    spec, _, params = read_checkpoint(folder, activation=None)
    return model, spec, params["text"], load_tokenizer(folder, spec=spec.text)


@pytest.fixture(scope="module")
def torch_tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, TINY["text"]["vocab_size"])
    return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)


TEXTS = [
    ("a cat.", "cat", "no cat here"),
    ("a big dog.", "it barks", "big dog", "a hound.", "it barks"),
    ("a {} in a name.",),
    ("zebra 7", "stripes all over", "striped"),
]


@pytest.mark.parity
@pytest.mark.parametrize("batch_size", [1, 5, 12, 100])
def test_a_column_is_the_mean_of_what_torch_makes_of_its_texts(clip, torch_tokenizer, batch_size):
    """Classes of several numbers of texts; a text that is given twice counts twice."""
    model, spec, params, tokenizer = clip
    classifier = build_classifier(
        spec=spec, text_params=params, tokenizer=tokenizer, texts=TEXTS, batch_size=batch_size
    )
    columns = []
    for texts in TEXTS:
        batch = torch_tokenizer(
            list(texts), padding="max_length", max_length=16, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            embeds = model.text_projection(model.text_model(batch["input_ids"]).pooler_output)
        embeds = embeds / embeds.norm(dim=-1, keepdim=True)
        mean = embeds.mean(0)
        columns.append(mean / mean.norm())
    expected = torch.stack(columns, 1).numpy()
    assert classifier.shape == (48, 4)
    assert classifier.dtype == np.float32
    np.testing.assert_allclose(classifier, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(classifier, axis=0), 1, rtol=1e-6)


def test_averages_of_unequal_numbers_of_texts():
    rng = np.random.default_rng(0)
    counts = [3, 1, 3, 2, 7]
    embeddings = rng.standard_normal((16, 5))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    parts = np.split(embeddings, np.cumsum(counts)[:-1])
    means = np.stack([part.mean(0) for part in parts])
    expected = (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    # Float32 of numbers up to 1, after a dozen roundings.
    ours = average_texts(embeddings.astype(np.float32), counts)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("eot_token_id", [None, 98])
def test_cutting_at_the_longest_text_changes_nothing(clip, eot_token_id):
    _, spec, params, tokenizer = clip
    spec = dataclasses.replace(spec, text=dataclasses.replace(spec.text, eot_token_id=eot_token_id))
    short = tokenize(["a b", "cat"], tokenizer=tokenizer, context_length=16)
    full = np.concatenate([short, tokenize(["x" * 20], tokenizer=tokenizer, context_length=16)])
    ours = embed_texts(short, spec=spec, text_params=params)
    theirs = embed_texts(full, spec=spec, text_params=params)[:2]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("texts", [[], [("a cat",), ()]])
def test_nothing_to_encode_is_refused(clip, texts):
    _, spec, params, tokenizer = clip
    with pytest.raises(UserError, match="at least one class, and a text for each"):
        build_classifier(spec=spec, text_params=params, tokenizer=tokenizer, texts=texts)
