"""Predictions on disk: files that a kill does not spoil, and folders of classes."""

from must_jax.predictions.folders import ClassFolders
from must_jax.predictions.output import Output, Tally, check_output
from must_jax.predictions.rows import Predicted

__all__ = ["ClassFolders", "Output", "Predicted", "Tally", "check_output"]
