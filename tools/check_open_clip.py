"""Checks conversion against OpenCLIP itself, on random weights of its published architectures.

Makes each model with open_clip_torch, saves it as OpenCLIP saves for the hub, converts the folder,
and prints the largest differences of unit-length embeddings of images and texts. The tests can't
do this: open_clip_torch and what it needs are gigabytes. `pip install open_clip_torch` first.
"""

import argparse
import gc
import logging
import pathlib
import shutil
import sys
import tempfile

# So that the program runs in a checkout that was not installed.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import numpy as np
import open_clip
import torch
from open_clip.push_to_hf_hub import save_for_hf

from must_jax.convert import TOKENIZER, convert, load_converted
from must_jax.models import TextTransformer, VisionTransformer
from must_jax.models.layers import l2_normalize
from must_jax.tokenizer import load_tokenizer, tokenize

MODELS = (
    "ViT-B-32",
    "ViT-B-32-quickgelu",
    "ViT-B-16",
    "ViT-L-14",
    "ViT-L-14-336",
    "ViT-H-14",
    "ViT-g-14",
)
TEXTS = ("a photo of a cat.", "A   Photo of the café's dog!", "42 zebras", "")
VOCABULARY = pathlib.Path(open_clip.__file__).parent

# The two libraries' float32 differs by 2e-7; a wrong activation moves an entry by 1e-3.
TOLERANCE = 1e-5


class _NoTokenizer:
    """OpenCLIP's own tokenizer has no files to save; its vocabulary file stands for them."""

    def save_pretrained(self, folder: pathlib.Path) -> None:
        """Puts the vocabulary into the folder."""
        shutil.copy(VOCABULARY / "bpe_simple_vocab_16e6.txt.gz", folder)


def save_random(
    name: str, folder: pathlib.Path, *, custom_text: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Saves a random model; returns images (B, R, R, 3), token ids, and both embeddings of it."""
    torch.manual_seed(0)
    model = open_clip.create_model(name, force_custom_text=custom_text).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            # Biases start at 0 and norms at 1, which would hide a mistake.
            if parameter.ndim == 1 or "bias" in key:
                parameter.add_(0.1 * torch.randn_like(parameter))
    safe = not custom_text
    config = open_clip.get_model_config(name)
    save_for_hf(model, _NoTokenizer(), config, str(folder), safe_serialization=safe)
    size = model.visual.image_size
    images = torch.randn(2, 3, *(size if isinstance(size, tuple) else (size, size)))
    ids = open_clip.get_tokenizer(name)(list(TEXTS))
    with torch.no_grad():
        image_embed = model.encode_image(images, normalize=True)
        text_embed = model.encode_text(ids, normalize=True)
    arrays = (images.permute(0, 2, 3, 1), ids, image_embed, text_embed)
    return tuple(array.numpy() for array in arrays)


def check(name: str, *, scratch: pathlib.Path, custom_text: bool) -> float:
    """Prints one row of the table; returns the largest difference."""
    source, target = scratch / "source", scratch / "target"
    images, ids, image_embed, text_embed = save_random(name, source, custom_text=custom_text)
    gc.collect()
    convert(source, target)
    weights = max(source.glob("open_clip_*"), key=lambda path: path.stat().st_size)
    gigabytes = weights.stat().st_size / 1e9
    shutil.rmtree(source)

    spec, params = load_converted(target)
    tokenizer = load_tokenizer(target / TOKENIZER, spec=spec.text)
    length = spec.text.context_length
    our_ids = tokenize(TEXTS, tokenizer=tokenizer, context_length=length)
    np.testing.assert_array_equal(our_ids, ids)
    vision = VisionTransformer(spec.vision, spec.embed_dim)
    text = TextTransformer(spec.text, spec.embed_dim)
    ours = jax.jit(vision.apply)({"params": params["vision"]}, images).image_embed
    image_difference = float(np.abs(ours - image_embed).max())
    ours = l2_normalize(jax.jit(text.apply)({"params": params["text"]}, our_ids))
    text_difference = float(np.abs(ours - text_embed).max())
    shutil.rmtree(target)
    print(
        f"| {name}{' (custom text, .bin)' if custom_text else ''} | {spec.vision.activation} "
        f"| {gigabytes:.2f} GB | {image_difference:.1e} | {text_difference:.1e} |",
        flush=True,
    )
    return max(image_difference, text_difference)


def main() -> int:
    """Runs the program; 1 if a model differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=MODELS, help="OpenCLIP's names (default: all)")
    parser.add_argument(
        "--custom-text", action="store_true", help="as CustomTextCLIP saves, in a .bin file"
    )
    args = parser.parse_args()
    # OpenCLIP warns that no weights were loaded, which is meant.
    logging.disable(logging.WARNING)
    print("| model | activation | file | images | texts |")
    print("|---|---|---|---|---|")
    worst = 0.0
    for name in args.models:
        with tempfile.TemporaryDirectory() as scratch:
            difference = check(name, scratch=pathlib.Path(scratch), custom_text=args.custom_text)
            worst = max(worst, difference)
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
