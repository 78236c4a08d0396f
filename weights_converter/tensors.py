"""What a checkpoint's pickle says of its storages and tensors, checked before any array exists."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from weights_converter.errors import CheckpointError

MAX_AXES = 64  # as many as NumPy has
MAX_ELEMENTS = 2**40

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
    """`count` elements, from element `start` on, of the record that the file calls `key`."""

    key: str
    dtype: np.dtype
    count: int
    start: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.count * self.dtype.itemsize

    def part(self, start: int, count: int) -> "Storage":
        """A storage that is a view of this one, as PyTorch had before version 0.4.

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


class Contents(NamedTuple):
    """A checkpoint whose pickle has been read and whose storages are still in the file."""

    value: object
    storages: dict[str, Storage]
    record: Callable[[Storage], memoryview]
    """The bytes of a whole storage."""
    byteorder: str
    """Of the storages: "<" or ">"."""


def describe_tensor(storage: object, offset: object, shape: object, strides: object) -> Tensor:
    """The tensor that a pickle describes, if it lies inside its storage.

    Raises:
        CheckpointError: a part of the wrong type, negative or beyond its limit, or a tensor that
            reaches outside its storage or has more elements than the storage.
    """
    if not isinstance(storage, Storage):
        raise CheckpointError(f"a tensor needs a storage, not a {type(storage).__name__}")
    where = f"a tensor of storage {storage.key!a:.80}"
    if type(offset) is not int or offset < 0:
        raise CheckpointError(f"{where} has an offset that is no count")
    shape, strides = _counts(shape, f"{where}: size"), _counts(strides, f"{where}: stride")
    if len(shape) != len(strides):
        raise CheckpointError(f"{where} has {len(shape)} axes but {len(strides)} strides")
    if math.prod(max(size, 1) for size in shape) > MAX_ELEMENTS:
        raise CheckpointError(f"{where} has sizes whose product overflows")
    elements = math.prod(shape)
    reach = sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    end = offset + reach + 1 if elements else offset
    if end > storage.count or elements > storage.count:
        raise CheckpointError(
            f"{where} has {elements} elements and ends at {end}, outside the storage's "
            f"{storage.count} elements"
        )
    return Tensor(storage, offset, shape, strides)


def _counts(values: object, what: str) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > MAX_AXES:
        raise CheckpointError(f"{what} is no tuple of at most {MAX_AXES} integers")
    if not all(type(value) is int and value >= 0 for value in values):
        raise CheckpointError(f"{what} holds something that is no count")
    return values


def elements_of(storage: Storage, record: memoryview, byteorder: str) -> NDArray:
    """A record's elements as unsigned integers in this machine's byte order.

    Args:
        storage: the whole record.
        record: its bytes.
        byteorder: "<" or ">".

    Returns:
        A vector, without a copy where the byte order is this machine's.

    Raises:
        CheckpointError: a bool that is neither 0 nor 1.
    """
    width = storage.dtype.itemsize
    elements = np.frombuffer(record, dtype=f"{byteorder}u{width}").astype(f"=u{width}", copy=False)
    if storage.dtype == np.bool_ and (elements > 1).any():
        raise CheckpointError(f"storage {storage.key!a:.80} has bools that are not 0 or 1")
    return elements


def array_of(tensor: Tensor, elements: NDArray) -> NDArray:
    """The array of a tensor: a view of `elements`, those of the whole record of its storage."""
    dtype = tensor.storage.dtype
    return np.ndarray(
        tensor.shape,
        dtype=dtype,
        buffer=elements,
        offset=(tensor.storage.start + tensor.offset) * dtype.itemsize,
        strides=tuple(step * dtype.itemsize for step in tensor.strides),
    )
