"""Reads PyTorch checkpoints without PyTorch and maps them to the models of `jax_excite`."""

from weights_converter.convert import Conversion, convert, convert_file, fit
from weights_converter.errors import CheckpointError
from weights_converter.reader import Checkpoint, read_checkpoint

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Conversion",
    "convert",
    "convert_file",
    "fit",
    "read_checkpoint",
]
