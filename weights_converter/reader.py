"""PyTorch checkpoints read without PyTorch, and without running anything they contain.

Two formats, told apart by their first bytes: the zip archive of PyTorch 1.6 and later, and the
stream of pickles before it. Stored records are mapped into memory, so arrays are views of the file
until their user copies them.
"""

import mmap
import os
from pathlib import Path

from numpy.typing import NDArray

from weights_converter.errors import CheckpointError
from weights_converter.legacy import open_legacy
from weights_converter.tensors import Tensor, array_of, elements_of
from weights_converter.zipped import open_zip

NESTED_IN = ("state_dict", "model")
PREFIX = "module."


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, NDArray]:
    """Read the state dict of a PyTorch checkpoint.

    A state dict inside a dict, under `state_dict` or `model`, is found there; the prefix `module.`
    of `torch.nn.DataParallel` is taken off where all names have it.

    Args:
        path: a file that `torch.save` wrote, in either of its formats.

    Returns:
        The arrays by name, in the file's order and with its shapes and dtypes, in this machine's
        byte order. Most are read-only views of the file, which must not change while they live.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is no such checkpoint, is damaged, or holds something else than
            tensors. The message names the global, opcode or record at fault.
    """
    path = Path(path)
    try:
        return _read(_map(path))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _map(path: Path) -> memoryview:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise CheckpointError("the file is empty")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _read(data: memoryview) -> dict[str, NDArray]:
    if data[:4] == b"PK\3\4":
        contents = open_zip(data)
    elif data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data):
        raise CheckpointError("already a safetensors file, which needs no conversion")
    elif data[257:262] == b"ustar":
        raise CheckpointError("a tar archive of PyTorch 0.1, which is not read")
    elif data[:1] == b"\x80":
        contents = open_legacy(data)
    else:
        raise CheckpointError(f"no PyTorch checkpoint: it starts with {bytes(data[:8])!r}")
    records: dict[str, NDArray] = {}
    arrays = {}
    for name, tensor in _find_state_dict(contents.value).items():
        storage = contents.storages[tensor.storage.key]
        if storage.key not in records:
            record = contents.record(storage)
            records[storage.key] = elements_of(storage, record, contents.byteorder)
        arrays[name] = array_of(tensor, records[storage.key])
    return arrays


def _find_state_dict(value: object) -> dict[str, Tensor]:
    if not isinstance(value, dict):
        raise CheckpointError(f"a state dict is wanted, not a {type(value).__name__}")
    entries = next((value[key] for key in NESTED_IN if isinstance(value.get(key), dict)), value)
    for name, tensor in entries.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"entry {name!a:.200} is a {type(tensor).__name__}; a state dict holds only "
                f"tensors by name, at the top or under {' or '.join(NESTED_IN)}"
            )
    if all(name.startswith(PREFIX) for name in entries):
        return {name.removeprefix(PREFIX): tensor for name, tensor in entries.items()}
    return entries
