import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from transformers import CLIPModel

from must_jax.convert.conversion import read_checkpoint
from must_jax.tokenizer import load_tokenizer, tokenize

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from digits import augment, bpe, captions, export, model  # noqa: E402

SHIPPED = ROOT / "assets" / "digits_clip"
# Both sides compute in float32 and differ by rounding, which the scale of 100 enlarges.
LOGIT_TOLERANCE = 1e-4

transformers.utils.logging.disable_progress_bar()


def assert_same_logits(folder, *, spec, params):
    """The folder in transformers' CLIP gives the logits of these towers and parameters."""
    tokenizer = load_tokenizer(folder, spec=spec.text)
    texts = [f"the number {word}." for word in captions.WORDS]
    tokens = tokenize(texts, tokenizer=tokenizer, context_length=spec.text.context_length)
    shape = (4, spec.vision.image_size, spec.vision.image_size, 3)
    images = np.asarray(jax.random.uniform(jax.random.key(0), shape))
    oracle = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    pixels = torch.tensor((images - augment.MEAN) / augment.STD).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = oracle(input_ids=torch.tensor(tokens).long(), pixel_values=pixels)
    image_embeds = model.encode_images(params, images, spec=spec)
    text_embeds = model.encode_texts(params, tokens, spec=spec)
    logits = spec.logit_scale * image_embeds @ text_embeds.T
    np.testing.assert_allclose(logits, expected.logits_per_image.numpy(), atol=LOGIT_TOLERANCE)
    assert oracle.logit_scale.exp().item() == pytest.approx(100, rel=1e-6)


@pytest.mark.parity
def test_folder_of_random_weights_agrees_with_torch(tmp_path):
    bpe.write_tokenizer(tmp_path, ["one two"], num_merges=9, context_length=model.CONTEXT_LENGTH)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text("utf-8"))
    spec = model.clip_spec(vocab_size=len(vocabulary), end_token_id=len(vocabulary) - 1)
    params = model.init_params(jax.random.key(1), spec=spec)
    stored = jax.tree.map(lambda leaf: np.float32(np.float16(leaf)), params)
    export.write_clip(tmp_path, params, spec=spec)
    assert_same_logits(tmp_path, spec=spec, params=stored)


@pytest.mark.parity
def test_shipped_folder_agrees_with_torch():
    spec, _, params = read_checkpoint(SHIPPED, activation=None)
    assert_same_logits(SHIPPED, spec=spec, params=params)


def test_shipped_folder_is_what_the_program_describes():
    spec, _, params = read_checkpoint(SHIPPED, activation=None)
    expected = model.clip_spec(
        vocab_size=spec.text.vocab_size, end_token_id=spec.text.vocab_size - 1
    )
    assert spec.logit_scale == pytest.approx(100, rel=1e-6)
    assert dataclasses.replace(spec, logit_scale=100.0) == expected
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 4e6
    assert (SHIPPED / "README.md").is_file()
    assert jax.tree.structure(params) == jax.tree.structure(
        jax.eval_shape(lambda key: model.init_params(key, spec=spec), jax.random.key(0))
    )


def test_contrastive_loss_is_soft_cross_entropy_both_ways():
    keys = jax.random.split(jax.random.key(2), 2)
    images, texts = (np.asarray(model.l2_normalize(jax.random.normal(key, (6, 5)))) for key in keys)
    digits = np.array([3, 1, 3, 3, 0, 1])
    loss = model.contrastive_loss(images, texts, digits, scale=7.0, smoothing=0.2)

    cosines = torch.tensor(images, dtype=torch.float64) @ torch.tensor(texts).double().T
    same = torch.tensor(digits)[:, None] == torch.tensor(digits)
    targets = 0.8 * same / same.sum(dim=1, keepdim=True) + 0.2 / 6
    entropy = torch.nn.functional.cross_entropy
    expected = (entropy(7 * cosines, targets) + entropy(7 * cosines.T, targets)) / 2
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
