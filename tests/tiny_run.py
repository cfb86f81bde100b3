"""A random little CLIP, random images and a config: a whole run that takes seconds."""

import jax
import numpy as np
from PIL import Image

from must_jax.config import default_config
from must_jax.convert.converted import TOKENIZER, write_converted
from must_jax.models import ClipSpec, TextSpec, TextTransformer, VisionSpec, VisionTransformer

CLASSES = ("circle", "square", "star")
TOWER = {
    "width": 32,
    "depth": 2,
    "num_heads": 2,
    "mlp_dim": 64,
    "activation": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
SPEC = ClipSpec(
    vision=VisionSpec(image_size=16, patch_size=4, **TOWER),
    text=TextSpec(vocab_size=99, context_length=16, eot_token_id=98, **TOWER),
    embed_dim=16,
    logit_scale=100.0,
    image_mean=(0.5, 0.4, 0.3),
    image_std=(0.2, 0.25, 0.3),
)


def write_checkpoint(folder, *, spec=SPEC):
    """A converted checkpoint with random weights."""
    import clip_checkpoints  # and torch, seconds that no process needs which reads the config

    vision = VisionTransformer(spec.vision, spec.embed_dim)
    text = TextTransformer(spec.text, spec.embed_dim)
    image = np.zeros((1, spec.vision.image_size, spec.vision.image_size, 3), np.float32)
    ids = np.zeros((1, spec.text.context_length), np.int32)
    params = {
        "vision": jax.jit(vision.init)(jax.random.key(0), image)["params"],
        "text": jax.jit(text.init)(jax.random.key(1), ids)["params"],
    }
    folder.mkdir(parents=True)
    clip_checkpoints.write_tokenizer(folder / TOKENIZER, spec.text.vocab_size)
    write_converted(folder, spec=spec, params=jax.device_get(params), source="random weights")
    return folder


def write_images(folder, *, count, seed):
    """`count` PNG files of noise."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03}.png")


def write_all(folder):
    """Checkpoint, images, names and templates under `folder`."""
    write_checkpoint(folder / "clip")
    write_images(folder / "train", count=36, seed=0)
    for seed, name in enumerate(CLASSES, start=1):
        write_images(folder / "test" / name, count=7, seed=seed)
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    (folder / "templates.txt").write_text("a {}.\nthe {}.\n")
    return folder


def config(folder, **changes):
    """A run of 2 epochs of 4 steps of 8 images, on what `write_all` wrote."""
    fields = default_config()
    fields.checkpoint = str(folder / "clip")
    fields.dataset.train = str(folder / "train")
    fields.dataset.test = str(folder / "test")
    fields.dataset.class_names = str(folder / "classes.txt")
    fields.dataset.templates = str(folder / "templates.txt")
    fields.image_size = 16
    fields.mask_patch_size = 8
    fields.batch_size = 8
    fields.epochs = 2
    fields.learning_rate = 1e-3
    fields.confidence_threshold = 0.4
    fields.log_every_steps = 2
    fields.loader.num_threads = 2
    fields.update_from_flattened_dict(changes)
    return fields
