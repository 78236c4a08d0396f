"""Consecutive pickles and raw bytes in a file, as PyTorch wrote them before version 1.6."""

import struct
from collections.abc import Mapping

import numpy as np

from weights_converter.errors import CheckpointError
from weights_converter.files import File, Record
from weights_converter.pickles import MAX_PICKLE_BYTES, Pickle, load_pickle
from weights_converter.tensors import Storage

MAX_SMALL_BYTES = 4 << 10


class Stream:
    """Bytes `place` to `end` of a file, read item by item.

    The methods raise `CheckpointError` if too few bytes are left.
    """

    def __init__(self, file: File, place: int, end: int):
        self.file = file
        self.place = place
        self.end = end

    @property
    def left(self) -> int:
        """The number of bytes that have not been read yet."""
        return self.end - self.place

    def pickle(self, objects: Mapping[str, object] | None = None) -> Pickle:
        """The next pickle; `objects` as for `load_pickle`."""
        return self._pickle(MAX_PICKLE_BYTES, objects)

    def small_pickle(self) -> object:
        """The value of the next pickle, which has at most `MAX_SMALL_BYTES` bytes."""
        return self._pickle(MAX_SMALL_BYTES, None).value

    def _pickle(self, limit: int, objects: Mapping[str, object] | None) -> Pickle:
        pickle = load_pickle(self.file.read(self.place, min(limit, self.left)), objects)
        self.place += pickle.length
        return pickle

    def integers(self, form: str) -> tuple[int, ...]:
        """The next integers, in the format `form` of the module `struct`."""
        length = struct.calcsize(form)
        if length > self.left:
            raise CheckpointError(f"{length} bytes are needed, but {self.left} are left")
        self.place += length
        return struct.unpack(form, self.file.read(self.place - length, length))

    def record(self, key: str, dtype: np.dtype, count: int | None = None) -> tuple[Storage, Record]:
        """The next storage and its record, which hold the number of elements and the elements.

        Args:
            key: the name of the storage.
            dtype: the dtype of the elements.
            count: the required number of elements, or None if it is not known.
        """
        needs = f"storage {key!a:.80} needs {'some' if count is None else count} elements"
        if self.left < 8:
            raise CheckpointError(f"{needs}, but the file has {self.left} bytes left")
        (found,) = self.integers("<q")
        storage = Storage(key, dtype, found)
        if found < 0 or storage.nbytes > self.left or found != (found if count is None else count):
            raise CheckpointError(
                f"{needs}, but the file declares {found} and has {self.left} bytes left"
            )
        self.place += storage.nbytes
        start = self.place - storage.nbytes
        return storage, Record(key, start, self.place, storage.nbytes)
