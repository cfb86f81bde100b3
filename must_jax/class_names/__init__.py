"""Class names, prompt templates and descriptions: the texts of a classifier."""

from must_jax.class_names.descriptions import Descriptions, read_descriptions
from must_jax.class_names.names import ClassNames, read_class_names
from must_jax.class_names.prompts import SLOT, check_texts, class_texts, read_templates

__all__ = [
    "SLOT",
    "ClassNames",
    "Descriptions",
    "check_texts",
    "class_texts",
    "read_class_names",
    "read_descriptions",
    "read_templates",
]
