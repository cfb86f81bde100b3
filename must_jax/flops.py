"""FLOPs of a training step by its formula, which no compiler and no short cut changes."""

import math

from must_jax.models import ClipSpec


def plain_flops(spec: ClipSpec, *, num_classes: int) -> float:
    """FLOPs of matrix products for one image where every token runs through every block.

    Teacher forward; student forward and, twice that, backward. The patch embedding has no gradient
    for its input.
    """
    vision = spec.vision
    tokens, width = vision.num_tokens, vision.width
    block = 2 * tokens * (4 * width**2 + 2 * width * vision.mlp_dim) + 4 * tokens**2 * width
    pixels = 3 * vision.patch_size**2
    embedding = 2 * vision.num_patches * pixels * width
    patches = 2 * vision.num_patches * width * (spec.embed_dim + pixels)
    head = 2 * spec.embed_dim * (width + num_classes)
    return float(math.fsum([4 * vision.depth * block, 3 * embedding, 3 * patches, 4 * head]))
