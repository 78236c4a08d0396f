"""Reads PyTorch checkpoints without PyTorch and maps them to the models of `jax_excite`."""

from weights_converter.convert import convert, convert_file, convert_tensors
from weights_converter.errors import CheckpointError

__all__ = ["CheckpointError", "convert", "convert_file", "convert_tensors"]
