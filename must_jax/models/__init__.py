"""CLIP's two towers in Flax, with the heads that MUST adds to the image tower."""

from must_jax.models.spec import ClipSpec, TextSpec, VisionSpec
from must_jax.models.text import TextTransformer
from must_jax.models.vit import VisionOutput, VisionTransformer, encode

__all__ = [
    "ClipSpec",
    "TextSpec",
    "TextTransformer",
    "VisionOutput",
    "VisionSpec",
    "VisionTransformer",
    "encode",
]
