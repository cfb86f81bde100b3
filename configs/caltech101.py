"""Caltech-101 without labels: the published recipe for ViT-B/16.

On a machine with tensorflow, which nothing else here needs:

    tfds build caltech101 --data_dir=data/tfds --file_format=array_record

Then:

    python tools/convert_clip_weights.py ViT-B-16.pt checkpoints/vit_b16
    python -m must_jax.main --config=configs/caltech101.py --mode=zeroshot
    python -m must_jax.main --config=configs/caltech101.py --workdir=runs/caltech101

`--config=configs/caltech101.py:b32` is ViT-B/32, of `checkpoints/vit_b32`.

Images: TFDS `caltech101`, 30 of each of 102 classes, 3,060, to train on and 6,084 to test on. The
background is a class, as in CLIP's list of names. The published runs drew 30 of each class too, but
others.

Its accuracies are not among the published figures that this project knows, so there is nothing to
expect. It is told as mean per-class accuracy, as published. Published hardware: 16 GPUs of 64
images each. This project has not reproduced the recipe. No recipe for ViT-B/32 is published: it
takes ViT-B/16's.
"""

import ml_collections

from must_jax.recipes import recipe

MODELS = {
    "b16": {},
    "b32": {},
}


def get_config(model: str = "b16") -> ml_collections.ConfigDict:
    """Two steps make an epoch."""
    config = recipe("caltech101", model=model, models=MODELS)
    config.dataset.tfds = "caltech101"
    config.dataset.data_dir = "data/tfds"
    config.dataset.train = "train"
    config.dataset.test = "test"
    config.eval_metric = "mean_per_class"
    config.epochs = 60
    config.learning_rate = 1e-5
    config.mask_ratio = 0.1
    config.ema_decay_initial = 0.99
    config.ema_warmup_steps = 100
    config.checkpoint_every_epochs = 10
    return config
