"""Reading of checkpoints without PyTorch, and without running anything that they contain.

There are four formats: the zip archive of PyTorch 1.6 and later, the stream of pickles before it,
the tar archive of PyTorch 0.1, and safetensors. They are recognised by their first bytes, never by
the file's name.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weights_converter.errors import CheckpointError
from weights_converter.files import File, inflation_limit
from weights_converter.legacy import open_legacy
from weights_converter.names import AVERAGED
from weights_converter.safetensors_file import open_safetensors
from weights_converter.tar import open_tar
from weights_converter.tensors import Contents, Tensor, make_array
from weights_converter.zipped import open_zip

NESTED_IN = ("state_dict", "model_state_dict", "model")
# Parts of names that wrappers add: DataParallel and AveragedModel, and torch.compile.
WRAPPERS = ("module", "_orig_mod")
# The prefix that Lightning and others add; it is removed only where all names begin with it.
PREFIX = "model."
_LFS = b"version https://git-lfs.github.com/spec/"
MAX_NAME = 512  # characters
_OPENERS: dict[str, Callable[[File], Contents]] = {
    "zip": open_zip,
    "legacy": open_legacy,
    "tar": open_tar,
    "safetensors": open_safetensors,
}


class Checkpoint(Mapping[str, NDArray]):
    """The arrays of a state dict by name; each is made on access and is not kept.

    Arrays are read-only. Large arrays are views of the file, which must not change while they
    exist. If you read one array at a time, you need no more memory than the largest array. The
    file is closed when the checkpoint is no longer referenced; arrays remain valid after that.

    Indexing raises `CheckpointError` if a deflated record is damaged, a bool is neither 0 nor 1, or
    the size of the file has changed.

    Attributes:
        format: "zip", "legacy", "tar" or "safetensors".
        metadata: the metadata of a safetensors file, else empty.
        shapes: the arrays' shapes by name.
        dtypes: the arrays' dtypes by name.
    """

    def __init__(self, path: Path, file: File, contents: Contents, tensors: dict[str, Tensor]):
        self.format = contents.format
        self.metadata = contents.metadata
        self.shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self.dtypes: dict[str, np.dtype] = {
            name: tensor.storage.dtype for name, tensor in tensors.items()
        }
        self._path, self._file, self._contents, self._tensors = path, file, contents, tensors

    def __getitem__(self, name: str) -> NDArray:
        tensor = self._tensors[name]
        record = self._contents.records[tensor.storage.key]
        try:
            return make_array(self._file, tensor, record, self._contents.byteorder)
        except CheckpointError as error:
            raise CheckpointError(f"{self._path}: {error}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read the state dict of a PyTorch checkpoint, or the tensors of a safetensors file.

    A state dict may be inside another dict, under `state_dict`, `model_state_dict` or `model`.
    Parts of names that wrappers add are removed: `module` and `_orig_mod` anywhere in a name, and
    `model` where all names begin with it. They are kept if two names would become the same.

    Args:
        path: a file that `torch.save` wrote, in any of its formats, or a safetensors file.

    Returns:
        The arrays by name, in the file's order and with its shapes and dtypes, in this machine's
        byte order. None of them has been made yet, but all have been checked to lie in the file.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is not such a checkpoint, is damaged, or holds anything other than
            tensors. The message names the global, opcode, record or tensor at fault.
    """
    path = Path(path)
    file = File(path)
    try:
        contents = _OPENERS[format_of(file)](file)
        tensors = _find_state_dict(contents.value)
        _check_total(file, contents, tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return Checkpoint(path, file, contents, tensors)


def format_of(file: File) -> str:
    """The format of a checkpoint, by its first bytes.

    Raises:
        CheckpointError: the bytes are not those of any of the formats.
    """
    start = file.read(0, 512)
    if start[5:9] == b"\0\0\0{":  # the end of the header's length, and the start of the header
        return "safetensors"
    if start[:4] == b"PK\3\4":
        return "zip"
    if start[257:262] == b"ustar":
        return "tar"
    if start[:1] == b"\x80":
        return "legacy"
    if start.startswith(_LFS):
        raise CheckpointError(
            "it is a Git LFS pointer, not the file itself: fetch the file with `git lfs pull`"
        )
    what = f"it starts with {start[:8]!r}" if start else "the file is empty"
    raise CheckpointError(f"not a checkpoint: {what}")


def _check_total(file: File, contents: Contents, tensors: dict[str, Tensor]) -> None:
    """Bound the total memory and time that the arrays can take, even if they share records."""
    total = 0
    for tensor in tensors.values():
        record = contents.records[tensor.storage.key]
        part = max(tensor.extent, tensor.size) * tensor.storage.dtype.itemsize
        total += record.size if record.deflated else part
    if total > inflation_limit(file):
        raise CheckpointError(f"tensors of {total} bytes in a file of {file.size} bytes")


def _find_state_dict(value: object) -> dict[str, Tensor]:
    if not isinstance(value, dict):
        raise CheckpointError(f"it holds a {type(value).__name__}, not a state dict")
    entries = next((value[key] for key in NESTED_IN if isinstance(value.get(key), dict)), value)
    for name, tensor in entries.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"entry {name!a:.200} is a {type(tensor).__name__}; a state dict holds only "
                f"tensors by name, at the top or under {' or '.join(NESTED_IN)}"
            )
        if len(name) > MAX_NAME:
            raise CheckpointError(f"entry {name[:40]!a} ... has a name of {len(name)} characters")
        if not name.isprintable():
            raise CheckpointError(f"entry {name!a:.200} has a name that cannot be printed")
    bare = {_without_wrappers(name): tensor for name, tensor in entries.items()}
    if len(bare) < len(entries):
        return entries
    if all(name.startswith(PREFIX) for name in bare if name != AVERAGED):
        return {name.removeprefix(PREFIX): tensor for name, tensor in bare.items()}
    return bare


def _without_wrappers(name: str) -> str:
    """A name without the parts that wrappers add, but never without its last part."""
    *parts, last = name.split(".")
    return ".".join([*(part for part in parts if part not in WRAPPERS), last])
