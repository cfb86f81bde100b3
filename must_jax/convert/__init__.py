"""Conversion of CLIP checkpoints, and the directory that it makes."""

from must_jax.convert.conversion import Summary, convert
from must_jax.convert.converted import TOKENIZER, load_converted

__all__ = ["TOKENIZER", "Summary", "convert", "load_converted"]
