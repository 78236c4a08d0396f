"""The globals that a checkpoint's pickles mention, found without building any object."""

import io
import math
import os
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from weights_converter.archive import Archive
from weights_converter.errors import CheckpointError
from weights_converter.files import File
from weights_converter.globals import GLOBALS
from weights_converter.pickles import MAX_PICKLE_BYTES, MAX_STEPS, read_global
from weights_converter.reader import format_of, read_checkpoint
from weights_converter.tar import list_members
from weights_converter.zipped import pickles_of, read_pickle

_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_TEXTS = {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"}
_TEXTS |= {"BINUNICODE8"}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_UNKNOWN = "?"
_WINDOWS = (4 << 10, 64 << 10, 1 << 20, MAX_PICKLE_BYTES)  # so that no pickle is read many times


class Mention(NamedTuple):
    """A global that a pickle mentions."""

    name: str
    """Its module and its name; "?" stands for what is computed as the pickle runs."""
    allowed: bool
    """Whether the reader knows it."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a file; `nbytes` is its size as an array in memory."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@dataclass(frozen=True)
class Inspection:
    """What a file holds.

    Attributes:
        format: "zip", "legacy", "tar" or "safetensors".
        tensors: the tensors in the file's order; empty if the file is refused.
        metadata: the metadata of a safetensors file, else empty.
        globals: the globals that its pickles mention.
        refusal: the reason why the file is refused; empty if it is not refused.
    """

    format: str
    tensors: list[TensorInfo]
    metadata: dict[str, str]
    globals: list[Mention]
    refusal: str


def inspect_file(path: str | os.PathLike[str]) -> Inspection:
    """Inspect a checkpoint, even one that the reader refuses, or a safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is not a checkpoint, or is too damaged to find its pickles.
    """
    kind, mentions = format_of(File(Path(path))), mentioned_globals(path)
    try:
        checkpoint = read_checkpoint(path)
    except CheckpointError as error:
        return Inspection(kind, [], {}, mentions, str(error))
    tensors = [
        TensorInfo(name, shape, str(dtype), math.prod(shape) * dtype.itemsize)
        for (name, shape), dtype in zip(
            checkpoint.shapes.items(), checkpoint.dtypes.values(), strict=True
        )
    ]
    return Inspection(kind, tensors, dict(checkpoint.metadata), mentions, "")


def mentioned_globals(path: str | os.PathLike[str]) -> list[Mention]:
    """Every global that a checkpoint mentions, in the order of first mention.

    Args:
        path: a checkpoint, which may be hostile.

    Returns:
        The globals up to the point where the pickles end or break off; none for a safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is not a checkpoint, its archive is too damaged to find its
            pickles, or there are more opcodes than the reader's limit.
    """
    path = Path(path)
    file = File(path)
    walker = _Walker()
    try:
        match format_of(file):
            case "zip":
                archive = Archive(file)
                for name in pickles_of(archive):
                    _walk_all(walker, read_pickle(archive, name))
            case "legacy":
                _walk_legacy(walker, file)
            case "tar":
                for name, start, end in list_members(file):
                    _walk_member(walker, file, name, start, end)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return [Mention(".".join(name), name in GLOBALS) for name in walker.mentions]


class _Walker:
    def __init__(self):
        self.mentions: dict[tuple[str, str], None] = {}
        self.last: tuple[str, str] | None = None
        self.steps = 0

    def walk(self, stream: io.BytesIO) -> bool:
        """Record the globals of the next pickle, and return whether its STOP was reached."""
        memo: dict[int, str | None] = {}
        # The two topmost strings on the stack, None where unknown.
        texts: tuple[str | None, str | None] = (None, None)
        self.last = None
        while (opcode := _OPCODES.get(stream.read(1))) is not None:
            self.steps += 1
            if self.steps > MAX_STEPS:
                raise CheckpointError(f"more than {MAX_STEPS} opcodes")
            try:
                argument = _read_argument(opcode, stream)
            except ValueError:
                return False
            match opcode.name:
                case "STOP":
                    return True
                case "GLOBAL" | "INST":
                    self.note(argument)
                    texts = None, None
                case "STACK_GLOBAL":
                    self.note((texts[0] or _UNKNOWN, texts[1] or _UNKNOWN))
                    texts = None, None
                case name if name in _TEXTS:
                    texts = texts[1], argument
                case name if name in _PUTS:
                    memo[len(memo) if argument is None else argument] = texts[1]
                case name if name in _GETS:
                    texts = texts[1], memo.get(argument)
                case "PROTO" | "FRAME":
                    pass
                case _:
                    texts = None, None
        return False

    def note(self, name: tuple[str, str]) -> None:
        self.last = name
        self.mentions.setdefault(name)


def _read_argument(opcode: pickletools.OpcodeInfo, stream: io.BytesIO) -> Any:
    if opcode.name in ("GLOBAL", "INST"):
        return read_global(stream)
    if opcode.name == "STRING":  # pickletools warns of escapes that are invalid in Python
        line = stream.readline()
        return None if b"\\" in line else line[1:-2].decode("latin-1")
    return opcode.arg.reader(stream) if opcode.arg else None


def _walk_all(walker: _Walker, data: bytes) -> None:
    stream = io.BytesIO(data)
    while stream.tell() < len(data) and walker.walk(stream):
        pass


def _walk_next(walker: _Walker, file: File, start: int, end: int) -> int:
    """Walk the pickle at `start`, and return the place of its end, or 0 if it breaks off."""
    for limit in _WINDOWS:
        stream = io.BytesIO(file.read(start, min(limit, end - start)))
        if walker.walk(stream):
            return start + stream.tell()
    return 0


def _walk_legacy(walker: _Walker, file: File) -> None:
    place = 0
    for _ in range(5):
        place = _walk_next(walker, file, place, file.size)
        if not place:
            return


def _walk_member(walker: _Walker, file: File, name: str, place: int, end: int) -> None:
    """Walk the pickles of a tar archive's member, and skip the bytes between them."""
    while place < end:
        place = _walk_next(walker, file, place, end)
        if not place:
            return
        if name == "tensors" and walker.last:
            axes = int.from_bytes(file.read(place, 4), "little", signed=True)
            place += 8 + 16 * max(axes, 0) + 8
        elif name == "storages" and walker.last in GLOBALS:
            dtype = GLOBALS[walker.last].dtype
            count = int.from_bytes(file.read(place, 8), "little", signed=True)
            place += 8 + max(count, 0) * (dtype.itemsize if dtype else 0)
