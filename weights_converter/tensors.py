"""Descriptions of the storages and tensors of a checkpoint, and the arrays made from them."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from weights_converter.errors import CheckpointError
from weights_converter.files import File, Record

MAX_AXES = 64  # NumPy's limit
MAX_ELEMENTS = 2**40
_NATIVE = "<" if sys.byteorder == "little" else ">"

STORAGE_DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}


@dataclass(frozen=True, slots=True)
class Storage:
    """`count` elements, from element `start` on, of the record with the name `key` in the file."""

    key: str
    dtype: np.dtype
    count: int
    start: int = 0

    @property
    def nbytes(self) -> int:
        """The size of the elements in bytes."""
        return self.count * self.dtype.itemsize

    def part(self, start: int, count: int) -> "Storage":
        """A storage that is a view of this storage, as in PyTorch before version 0.4.

        Raises:
            CheckpointError: the part reaches outside the storage.
        """
        if start < 0 or count < 0 or start + count > self.count:
            raise CheckpointError(
                f"{count} elements from {start} on lie outside storage {self.key!a:.80} "
                f"of {self.count} elements"
            )
        return Storage(self.key, self.dtype, count, start)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A strided view of a storage; `offset` and `strides` count elements, as in PyTorch."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self.shape)

    @property
    def extent(self) -> int:
        """The number of elements of the storage from the tensor's first to its last, inclusive."""
        if 0 in self.shape:
            return 0
        return 1 + sum(
            (size - 1) * step for size, step in zip(self.shape, self.strides, strict=True)
        )


class Contents(NamedTuple):
    """A checkpoint whose structure has been read and whose storages are still in the file."""

    format: str
    """One of "zip", "legacy", "tar" and "safetensors"."""
    value: object
    records: dict[str, Record]
    """The records of the storages by key, each of its storage's size."""
    byteorder: str = "<"
    """Of the storages: "<" or ">"."""
    metadata: Mapping[str, str] = MappingProxyType({})


def describe_tensor(storage: object, offset: object, shape: object, strides: object) -> Tensor:
    """The tensor that a pickle describes, if it lies inside its storage.

    Raises:
        CheckpointError: an argument has the wrong type, is negative or exceeds its limit, or the
            tensor reaches outside its storage or has more elements than the storage.
    """
    if not isinstance(storage, Storage):
        raise CheckpointError(f"a tensor needs a storage, not a {type(storage).__name__}")
    where = f"a tensor of storage {storage.key!a:.80}"
    if type(offset) is not int or offset < 0:
        raise CheckpointError(f"{where} has an offset that is not a count")
    shape, strides = _counts(shape, f"{where}: size"), _counts(strides, f"{where}: stride")
    if len(shape) != len(strides):
        raise CheckpointError(f"{where} has {len(shape)} axes but {len(strides)} strides")
    if math.prod(max(size, 1) for size in shape) > MAX_ELEMENTS:
        raise CheckpointError(f"{where} has sizes whose product overflows")
    tensor = Tensor(storage, offset, shape, strides)
    # Along an axis of stride 0, as made by `torch.Tensor.expand`, all entries are the same element.
    distinct = math.prod(size for size, step in zip(shape, strides, strict=True) if step)
    end = offset + tensor.extent
    if end > storage.count or (0 not in shape and distinct > storage.count):
        raise CheckpointError(
            f"{where} has {distinct} elements and ends at {end}, outside the storage's "
            f"{storage.count} elements"
        )
    return tensor


def _counts(values: object, what: str) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > MAX_AXES:
        raise CheckpointError(f"{what} is not a tuple of at most {MAX_AXES} integers")
    if not all(type(value) is int and value >= 0 for value in values):
        raise CheckpointError(f"{what} has an entry that is not a count")
    return values


def make_array(file: File, tensor: Tensor, record: Record, byteorder: str) -> NDArray:
    """The array of a tensor, read-only and in this machine's byte order.

    Args:
        file: the checkpoint.
        tensor: the tensor, which lies inside its storage.
        record: the record of its storage, which has the storage's size.
        byteorder: the byte order of the record, "<" or ">".

    Returns:
        The array, which is a view of the file if it is large, not deflated, and stored in this
        machine's byte order.

    Raises:
        CheckpointError: the record is damaged, a bool is neither 0 nor 1, or the file has changed.
    """
    dtype = tensor.storage.dtype
    width = dtype.itemsize
    swapped = width > 1 and byteorder != _NATIVE
    start = (tensor.storage.start + tensor.offset) * width
    length = tensor.extent * width
    if record.deflated:
        raw = file.inflate(record)[start : start + length]
    elif swapped:
        raw = file.copy(record.start + start, length)
    else:
        raw = file.view(record.start + start, length)
    if swapped:
        raw.view(f"u{width}").byteswap(inplace=True)
    if dtype == np.bool_ and raw.max(initial=0) > 1:
        raise CheckpointError(f"storage {tensor.storage.key!a:.80} has bools that are not 0 or 1")
    # For an axis of length 1 or an empty tensor, a file may give any stride, but NumPy does not
    # accept every stride.
    steps = zip(tensor.shape, tensor.strides, strict=True)
    strides = tuple(step * width if size > 1 and length else 0 for size, step in steps)
    array = np.ndarray(tensor.shape, dtype, raw, strides=strides)
    array.flags.writeable = False
    return array
