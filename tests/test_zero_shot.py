"""The zero-shot classifier against the published numbers and against torch."""

import dataclasses
import pathlib

import numpy as np
import pytest
import torch
from clip_checkpoints import TINY, make_clip, save_clip

from must_jax.convert.conversion import read_checkpoint
from must_jax.convert.table import OPENAI, convert_tensors
from must_jax.errors import UserError
from must_jax.models import ClipSpec, TextSpec, VisionSpec
from must_jax.tokenizer import load_tokenizer, tokenize
from must_jax.zero_shot import average_templates, build_classifier, embed_texts

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
    table = np.full((49408, 64), np.nan, np.float32)
    table[source.pop("used_token_ids")] = source.pop("used_token_rows")
    source["token_embedding.weight"] = table
    rules = tuple(rule for rule in OPENAI.rules if rule.path.startswith("text/"))
    layout = dataclasses.replace(OPENAI, rules=rules)
    return convert_tensors(source, layout=layout, spec=GOLDEN_SPEC)["text"]


@pytest.mark.parity
@pytest.mark.parametrize("name", ["k10", "k520"])
def test_golden_classifier(name):
    with np.load(GOLDEN / f"{name}_main.npz") as arrays:
        tokens, embeds, expected = (arrays[k] for k in ("tokens", "text_embeds", "classifier"))
    flat = tokens.reshape(-1, 77)
    ours = embed_texts(flat, spec=GOLDEN_SPEC, text_params=golden_text_params(name))
    ours = ours.reshape(*tokens.shape[:2], -1)
    embeds = embeds / np.linalg.norm(embeds, axis=-1, keepdims=True)
    # Entries of unit vectors, each after some hundred roundings of 6e-8 that mostly cancel.
    np.testing.assert_allclose(ours, embeds, rtol=0, atol=1e-6)
    classifier = average_templates(ours)
    assert classifier.dtype == np.float32
    np.testing.assert_allclose(classifier, expected, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A torch CLIP, and what of it converts: the spec, the text parameters, the tokenizer."""
    model = make_clip(**TINY, seed=5)
    folder = save_clip(model, tmp_path_factory.mktemp("clip"))
    spec, _, params = read_checkpoint(folder, activation=None)
    return model, spec, params["text"], load_tokenizer(folder, spec=spec.text)


NAMES = ["cat", "big dog", "a {} in a name", "zebra 7"]
TEMPLATES = ["a {}.", "{}", "no {} here"]


@pytest.mark.parity
@pytest.mark.parametrize("batch_size", [1, 5, 12, 100])
def test_classifier_is_what_torch_makes_of_the_prompts(clip, batch_size):
    model, spec, params, tokenizer = clip
    classifier = build_classifier(
        spec=spec,
        text_params=params,
        tokenizer=tokenizer,
        class_names=NAMES,
        templates=TEMPLATES,
        batch_size=batch_size,
    )
    columns = []
    for name in NAMES:
        prompts = [f"a {name}.", name, f"no {name} here"]
        batch = tokenizer(
            prompts, padding="max_length", max_length=16, truncation=True, return_tensors="pt"
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


@pytest.mark.parametrize("eot_token_id", [None, 98])
def test_cutting_at_the_longest_text_changes_nothing(clip, eot_token_id):
    _, spec, params, tokenizer = clip
    spec = dataclasses.replace(spec, text=dataclasses.replace(spec.text, eot_token_id=eot_token_id))
    short = tokenize(["a b", "cat"], tokenizer=tokenizer, context_length=16)
    full = np.concatenate([short, tokenize(["x" * 20], tokenizer=tokenizer, context_length=16)])
    ours = embed_texts(short, spec=spec, text_params=params)
    theirs = embed_texts(full, spec=spec, text_params=params)[:2]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("names", "templates"), [([], TEMPLATES), (NAMES, [])])
def test_nothing_to_encode_is_refused(clip, names, templates):
    _, spec, params, tokenizer = clip
    with pytest.raises(UserError, match="at least one class name and one template"):
        build_classifier(
            spec=spec,
            text_params=params,
            tokenizer=tokenizer,
            class_names=names,
            templates=templates,
        )
