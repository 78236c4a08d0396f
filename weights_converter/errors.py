"""What the converter raises about a file it cannot or will not read."""

from jax_excite.errors import WeightsError


class CheckpointError(WeightsError):
    """A file that is no PyTorch checkpoint, is damaged, or asks for what the reader refuses.

    The message names the global, the opcode or the record at fault.
    """
