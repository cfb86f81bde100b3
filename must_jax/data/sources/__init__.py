"""Images from anywhere, as random-access sources of encoded files."""

from must_jax.data.sources.classes import Classes, Labels
from must_jax.data.sources.folder import IMAGE_SUFFIXES, ImageFolder
from must_jax.data.sources.open import open_source
from must_jax.data.sources.source import Source, decode_record

__all__ = [
    "IMAGE_SUFFIXES",
    "Classes",
    "ImageFolder",
    "Labels",
    "Source",
    "decode_record",
    "open_source",
]
