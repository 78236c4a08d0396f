"""A file that is read in pieces, and the pieces that hold the storages of a checkpoint."""

import mmap
import os
import stat
import threading
import weakref
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from weights_converter.errors import CheckpointError

MAPPED_BYTES = 64 << 10
MAPPED_SHARE = 256  # as few mappings, and so file descriptors, at most
MAX_INFLATED_BYTES = 64 << 20  # or MAX_INFLATION times the file, whichever is more
MAX_INFLATION = 16
_STEP = 64 << 10


@dataclass(frozen=True, slots=True)
class Record:
    """The piece of a file that holds a storage: its bytes `start` to `end`, perhaps deflated."""

    name: str
    start: int
    end: int
    size: int
    """Bytes, inflated."""
    crc: int | None = None
    """Of the inflated bytes; None for a record that is not deflated."""

    @property
    def deflated(self) -> bool:
        """Whether its bytes must be inflated."""
        return self.crc is not None


class File:
    """A file open for reading until the last reference to it goes.

    Args:
        path: an existing file.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is no regular file; on each use, where it no longer has the size that
            it had.
    """

    def __init__(self, path: Path):
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would never open
            raise CheckpointError(f"{path} is no regular file")
        self._file = path.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)
        self._lock = threading.Lock()
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, start: int, length: int) -> bytes:
        """At most `length` bytes from `start` on; fewer where the file ends."""
        start = min(start, self.size)
        length = min(length, self.size - start)
        with self._lock:
            self._check_size()
            self._file.seek(start)
            found = self._file.read(length)
        if len(found) != length:
            self._refuse_change()
        return found

    def copy(self, start: int, length: int) -> NDArray[np.uint8]:
        """The `length` bytes from `start` on, which lie within the file, in memory of their own."""
        copied = np.empty(length, np.uint8)
        rest = copied.data
        with self._lock:
            self._check_size()
            self._file.seek(start)
            while rest:
                count = self._file.readinto(rest)
                if not count:
                    self._refuse_change()
                rest = rest[count:]
        return copied

    def view(self, start: int, length: int) -> NDArray[np.uint8]:
        """As `copy`, but a mapping of the file where they are many enough to be worth one.

        The mapping, which is read-only, goes with the array.
        """
        self._check_size()
        if length < max(MAPPED_BYTES, self.size // MAPPED_SHARE):
            return self.copy(start, length)
        before = start % mmap.ALLOCATIONGRANULARITY
        try:
            mapping = mmap.mmap(
                self._file.fileno(),
                before + length,
                access=mmap.ACCESS_READ,
                offset=start - before,
            )
        except OSError:  # no descriptor left, or a file system that maps nothing
            return self.copy(start, length)
        except ValueError:  # the file has become shorter in this very moment
            self._refuse_change()
        return np.ndarray(length, np.uint8, mapping, before)

    def inflate(self, record: Record) -> NDArray[np.uint8]:
        """The bytes of a deflated record.

        Raises:
            CheckpointError: the record is damaged or not of the size that it declares.
        """
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        inflated = np.empty(record.size, np.uint8)
        filled = 0
        for place in range(record.start, record.end, _STEP):
            packed = self.read(place, min(_STEP, record.end - place))
            try:
                piece = stream.decompress(packed, record.size - filled + 1)
            except zlib.error as error:
                raise CheckpointError(f"record {record.name!a:.200}: {error}") from None
            if filled + len(piece) > record.size:
                raise CheckpointError(
                    f"record {record.name!a:.200} inflates beyond its declared size"
                )
            inflated[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
            filled += len(piece)
        complete = stream.eof and not stream.unused_data and filled == record.size
        if not complete or zlib.crc32(inflated.data) != record.crc:
            raise CheckpointError(f"record {record.name!a:.200} is damaged")
        return inflated

    def _check_size(self) -> None:
        if os.fstat(self._file.fileno()).st_size != self.size:
            self._refuse_change()

    def _refuse_change(self) -> NoReturn:
        raise CheckpointError(f"the file had {self.size} bytes when it was opened, and has changed")


def inflation_limit(file: File) -> int:
    """Bytes that may be made of a file."""
    return max(MAX_INFLATED_BYTES, MAX_INFLATION * file.size)
