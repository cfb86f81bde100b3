"""Conversion of CLIP checkpoints, and the directory that it makes."""

from must_jax.convert.conversion import convert, read_checkpoint
from must_jax.convert.converted import TOKENIZER, load_converted, read_converted_spec
from must_jax.convert.summary import Summary

__all__ = [
    "TOKENIZER",
    "Summary",
    "convert",
    "load_converted",
    "read_checkpoint",
    "read_converted_spec",
]
