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
MAPPED_SHARE = 256  # the maximum number of mappings, and therefore of file descriptors
MAX_INFLATED_BYTES = 64 << 20  # or MAX_INFLATION times the file's size, whichever is larger
MAX_INFLATION = 16
_STEP = 64 << 10


@dataclass(frozen=True, slots=True)
class Record:
    """The piece of a file that holds a storage: bytes `start` to `end`, which may be deflated."""

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
    """A file that stays open for reading until the last reference to it is gone.

    Args:
        path: an existing file.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is not a regular file. Methods that read also raise this error if the
            size of the file has changed.
    """

    def __init__(self, path: Path):
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe could block forever
            raise CheckpointError(f"{path} is not a regular file")
        self._file = path.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)
        self._lock = threading.Lock()
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, start: int, length: int) -> bytes:
        """At most `length` bytes from `start` on; fewer if the file ends before."""
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
        """A copy of the `length` bytes from `start` on, which must lie within the file."""
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
        """As `copy`, but a mapping of the file if there are enough bytes to justify a mapping.

        The mapping is read-only, and is released together with the array.
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
        except OSError:  # no descriptor is left, or the file system does not support mappings
            return self.copy(start, length)
        except ValueError:  # the file has become shorter since its size was checked
            self._refuse_change()
        return np.ndarray(length, np.uint8, mapping, before)

    def inflate(self, record: Record) -> NDArray[np.uint8]:
        """The bytes of a deflated record.

        Raises:
            CheckpointError: the record is damaged or does not have the size that it declares.
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
        raise CheckpointError(
            f"the file had {self.size} bytes when it was opened, and has changed since"
        )


def inflation_limit(file: File) -> int:
    """The maximum number of bytes that may be produced from a file."""
    return max(MAX_INFLATED_BYTES, MAX_INFLATION * file.size)
