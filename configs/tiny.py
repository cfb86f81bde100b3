"""Five steps on the digits, for debugging: breakpoints in `train_step` stop at real numbers.

    python -m must_jax.main --config=configs/tiny.py --workdir=runs/tiny --disable_jit

A quarter of a minute on two CPU cores, a minute without jit, on what `configs/digits.py` says how
to prepare.
"""

import ml_collections

from must_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """The digits in one epoch of large batches; too few steps to learn from."""
    config = default_config()
    config.checkpoint = "checkpoints/digits_clip"
    config.dataset.train = "data/digits/train"
    config.dataset.test = "data/digits/test"
    config.dataset.class_names = "data/digits/classes.txt"
    config.dataset.templates = "data/digits/templates.txt"
    config.image_size = 32
    config.mask_patch_size = 8
    config.batch_size = 232
    config.epochs = 1
    config.log_every_steps = 1
    return config
