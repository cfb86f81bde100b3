"""Handwritten digits without labels, on the small CLIP that comes with the project.

    python tools/prepare_digits.py data/digits
    python tools/convert_clip_weights.py assets/digits_clip checkpoints/digits_clip
    python -m must_jax.main --config=configs/digits.py --workdir=runs/digits

Minutes on two CPU cores. The README has the accuracies of five seeds.
"""

import ml_collections

from must_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """Constants for a tower of 4 layers and a run of a few hundred steps."""
    config = default_config()
    config.checkpoint = "checkpoints/digits_clip"
    config.dataset.train = "data/digits/train"
    config.dataset.test = "data/digits/test"
    config.dataset.class_names = "data/digits/classes.txt"
    config.dataset.templates = "data/digits/templates.txt"
    config.image_size = 32
    config.mask_patch_size = 8
    config.mask_ratio = 0.1
    config.batch_size = 64
    config.epochs = 60
    config.learning_rate = 1e-3
    config.min_learning_rate = 1e-5
    # Layers at the bottom of 4 would move 30 times as fast as those of 12 at the same decay.
    config.layer_decay = 0.4
    # The published final decay averages over 5,000 steps, longer than this run.
    config.ema_decay_initial = 0.98
    config.ema_decay = 0.99
    config.ema_warmup_steps = 100
    config.strong_view.crop_area = (0.6, 1.0)
    config.strong_view.flip_probability = 0.0  # digits are not mirror-symmetric
    config.log_every_steps = 90
    config.eval_every_epochs = 5
    config.checkpoint_every_epochs = 5
    return config
