"""The error that the converter raises about a file that it cannot read or refuses to read."""

from jax_excite.errors import WeightsError


class CheckpointError(WeightsError):
    """A file is not a PyTorch checkpoint, is damaged, or contains what the reader refuses.

    The message names the global, the opcode or the record at fault.
    """
