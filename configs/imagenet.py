"""ImageNet without labels, CLIP ViT-B/16: the published recipe.

    python tools/convert_clip_weights.py ViT-B-16.pt checkpoints/vit_b16
    python -m must_jax.main --config=configs/imagenet.py --workdir=runs/imagenet

Images: `data/imagenet/train`, 1,281,167 JPEGs in any layout, and `data/imagenet/val`, 50,000 in
one folder a WordNet id. Published hardware: 16 GPUs of 64 images each. Top-1 to expect (Li,
Savarese and Hoi, 2023, table 1): zero-shot 68.3 %, adapted 77.7 %, which is the best of 30 epochs
by the labelled images. This project has not reproduced it: it had no accelerator to run it on.
"""

import pathlib

import ml_collections

import must_jax
from must_jax.config import default_config

ASSETS = pathlib.Path(must_jax.__file__).parent / "assets" / "imagenet"


def get_config() -> ml_collections.ConfigDict:
    """The defaults of `must_jax.config` are this recipe's constants; only the paths are missing."""
    config = default_config()
    config.checkpoint = "checkpoints/vit_b16"
    config.dataset.train = "data/imagenet/train"
    config.dataset.test = "data/imagenet/val"
    config.dataset.class_names = str(ASSETS / "classes.tsv")
    config.dataset.templates = str(ASSETS / "templates.txt")
    return config
