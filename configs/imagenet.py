"""ImageNet without labels: the published recipes for ViT-B/16 and ViT-L/14.

    python tools/convert_clip_weights.py ViT-B-16.pt checkpoints/vit_b16
    python -m must_jax.main --config=configs/imagenet.py --mode=zeroshot
    python -m must_jax.main --config=configs/imagenet.py --workdir=runs/imagenet

`--config=configs/imagenet.py:l14` is ViT-L/14, of `checkpoints/vit_l14`; `:b32` is ViT-B/32.

Images: `data/imagenet/train`, 1,281,167 JPEGs in any layout, and `data/imagenet/val`, 50,000 in one
folder a WordNet id.

Top-1 to expect (Li, Savarese and Hoi, 2023, table 1): zero-shot 68.3 %, adapted 77.7 %; ViT-L/14
75.5 % and 82.1 %. The adapted figure is of the epoch that scored best on the test labels. Published
hardware: 16 GPUs of 64 images each. This project has not reproduced the figures. No recipe for
ViT-B/32 is published: it takes ViT-B/16's.
"""

import ml_collections

from must_jax.recipes import recipe

MODELS = {
    "b16": {
        "expected.zeroshot": 68.3,
        "expected.adapted": 77.7,
    },
    "l14": {
        "mask_patch_size": 56,
        "align_weight": 0.5,
        "confidence_threshold": 0.5,
        "learning_rate": 4e-5,
        "epochs": 20,
        "expected.zeroshot": 75.5,
        "expected.adapted": 82.1,
    },
    "b32": {},
}


def get_config(model: str = "b16") -> ml_collections.ConfigDict:
    """The defaults of `must_jax.config` are ViT-B/16's constants."""
    config = recipe("imagenet", model=model, models=MODELS)
    config.dataset.train = "data/imagenet/train"
    config.dataset.test = "data/imagenet/val"
    return config
