"""Both towers of converted SigLIPs against transformers' own in torch."""

from typing import NamedTuple

import jax
import numpy as np
import pytest
import torch
from full_size import compute_in_float32, give_back_memory, onto_device
from PIL import Image
from siglip_checkpoints import TINY, make_siglip, save_siglip, write_gemma, write_spiece
from transformers import SiglipImageProcessorPil

from must_jax.convert import TOKENIZER, convert, load_converted
from must_jax.convert.conversion import read_checkpoint
from must_jax.models import VisionTransformer, encode
from must_jax.tokenizer import load_tokenizer
from must_jax.train_step import normalize
from must_jax.zero_shot import build_classifier, embed_texts

pytestmark = pytest.mark.parity

SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
}
B_16 = {"vision": {}, "text": {}}
SO400M_14_384 = {
    "vision": {**SO400M, "image_size": 384, "patch_size": 14},
    "text": SO400M,
}
# SigLIP 2's largest, whose text tower is narrower than the image tower.
G_OPT_16_256 = {
    "vision": {
        "hidden_size": 1536,
        "intermediate_size": 6144,
        "num_attention_heads": 16,
        "num_hidden_layers": 40,
        "image_size": 256,
    },
    "text": {**SO400M, "vocab_size": 256_000, "projection_size": 1536},
}


class Reference(NamedTuple):
    """What torch makes of images (B, 3, R, R) and token ids (2, T)."""

    images: np.ndarray
    ids: np.ndarray
    image_embeds: np.ndarray
    text_embeds: np.ndarray
    logits: np.ndarray
    bias: float


def run_torch(model, *, batch_size):
    generator = torch.Generator().manual_seed(0)
    size, text = model.config.vision_config.image_size, model.config.text_config
    images = torch.randn(batch_size, 3, size, size, generator=generator)
    shape = (2, text.max_position_embeddings)
    ids = torch.randint(0, text.vocab_size, shape, generator=generator)
    ids[0, 5:] = 1
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=images)
    arrays = (images, ids, out.image_embeds, out.text_embeds, out.logits_per_image)
    return Reference(*(array.numpy() for array in arrays), bias=model.logit_bias.item())


def assert_same_logits(spec, params, reference):
    vision = VisionTransformer(spec.vision, spec.embed_dim)
    # A convolution leaves out what no whole patch covers, at the right and at the bottom.
    images = reference.images[:, :, : spec.vision.image_size, : spec.vision.image_size]
    image_embed = jax.jit(vision.apply)(
        {"params": onto_device(params["vision"])}, images.transpose(0, 2, 3, 1)
    ).image_embed
    text_embed = embed_texts(reference.ids, spec=spec, text_params=onto_device(params["text"]))
    logits = spec.logit_scale * image_embed @ text_embed.T

    # float32 rounding: seen were 1.4e-7 in entries of unit vectors, and 1e-5 in logits, which the
    # scale of 117 enlarges.
    for ours, theirs, atol in [
        (image_embed, reference.image_embeds, 1e-6),
        (text_embed, reference.text_embeds, 1e-6),
        (logits, reference.logits - reference.bias, 1e-4),
    ]:
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)
    assert np.abs(logits).max() > 0.5
    # The bias cancels in the softmax over classes.
    np.testing.assert_allclose(
        jax.nn.softmax(logits), jax.nn.softmax(reference.logits), rtol=0, atol=1e-4
    )


def check_tiny(config, folder, *, batch_size):
    model = make_siglip(**config)
    spec, _, params = read_checkpoint(save_siglip(model, folder), activation=None)
    assert_same_logits(spec, params, run_torch(model, batch_size=batch_size))


def test_tiny(tmp_path):
    check_tiny(TINY, tmp_path, batch_size=3)


def test_tiny_with_an_image_that_patches_do_not_fill(tmp_path):
    vision = TINY["vision"] | {"image_size": 18, "layer_norm_eps": 1e-3}
    check_tiny(TINY | {"vision": vision}, tmp_path, batch_size=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(B_16, id="B/16 at 224"),
        pytest.param(SO400M_14_384, id="So400m/14 at 384"),
        pytest.param(G_OPT_16_256, id="g-opt/16 at 256"),
    ],
)
def test_published_shapes(config, tmp_path):
    model = make_siglip(**config, dtype=torch.float16)
    source = save_siglip(model, tmp_path, max_shard_size="1GB")
    compute_in_float32(model)
    reference = run_torch(model, batch_size=1)
    del model
    give_back_memory()
    spec, _, params = read_checkpoint(source, activation=None)
    assert_same_logits(spec, params, reference)


@pytest.mark.parametrize(("write", "num_tokens"), [(write_spiece, 45), (write_gemma, 400)])
def test_zero_shot_is_what_torch_makes_of_image_and_prompts(write, num_tokens, tmp_path):
    text = TINY["text"] | {"vocab_size": num_tokens}
    model = make_siglip(vision=TINY["vision"], text=text, seed=2)
    save_siglip(model, tmp_path / "source", write_tokenizer=write)
    convert(tmp_path / "source", tmp_path / "target")
    spec, params = load_converted(tmp_path / "target")

    texts = [("A photo of a cat.",), ("The BIG dog", "a picture of the big dog!"), ("zebra",)]
    classifier = build_classifier(
        spec=spec,
        text_params=params["text"],
        tokenizer=load_tokenizer(tmp_path / "target" / TOKENIZER, spec=spec.text),
        texts=texts,
    )
    tokenizer = write(tmp_path / "again")
    columns = []
    for said in texts:
        # Padded to the whole context and without a mask, as SigLIP is meant to be used.
        batch = tokenizer(
            list(said), padding="max_length", max_length=16, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            embeds = model.get_text_features(input_ids=batch["input_ids"]).pooler_output
        mean = torch.nn.functional.normalize(embeds, dim=-1).mean(0)
        columns.append(mean / mean.norm())
    expected = torch.stack(columns, 1).numpy()
    assert classifier.shape == (48, 3)
    # Entries of unit vectors, each after some hundred float32 roundings that mostly cancel.
    np.testing.assert_allclose(classifier, expected, rtol=0, atol=1e-6)

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    processor = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    pixels = torch.tensor(np.stack(processor(image)["pixel_values"]))
    with torch.no_grad():
        embed = model.get_image_features(pixel_values=pixels).pooler_output
    embed = torch.nn.functional.normalize(embed, dim=-1).numpy()
    tower = VisionTransformer(
        spec.vision, spec.embed_dim, num_classes=3, logit_scale=spec.logit_scale
    )
    ours = normalize(np.asarray(image)[None], mean=spec.image_mean, std=spec.image_std)
    output = encode(tower, {**params["vision"], "classifier": classifier}, ours)
    # Some hundred roundings of unit entries, times the scale of 117.
    np.testing.assert_allclose(
        output.logits, np.exp(4.7655) * embed @ expected, rtol=0, atol=117 * 2e-6
    )
