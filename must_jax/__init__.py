"""Masked Unsupervised Self-Training (MUST) of CLIP image classifiers, in JAX."""

__version__ = "0.1.0"
