"""A strict reader of the tar archives that PyTorch 0.1 wrote."""

from collections.abc import Iterator

import numpy as np

from weights_converter.errors import CheckpointError
from weights_converter.files import File, Record
from weights_converter.globals import Global
from weights_converter.streams import Stream
from weights_converter.tensors import MAX_AXES, Contents, Storage, describe_tensor

MEMBERS = {"sys_info", "pickle", "tensors", "storages"}
MAX_OBJECTS = 20_000
MAX_ATTRIBUTES_BYTES = 4 << 10
_BLOCK = 512
_TAPE = 20 * _BLOCK  # the file's size is a multiple of this
_ATTRIBUTES = {"atime", "ctime", "mtime", "gname", "uname", "gid", "uid"}


def open_tar(file: File) -> Contents:
    """Read the members of a tar archive, and check every tensor and storage they describe.

    Args:
        file: the whole file.

    Raises:
        CheckpointError: see `weights_converter.reader.read_checkpoint`.
    """
    members = {name: (start, end) for name, start, end in list_members(file)}
    storages, records = _read_storages(Stream(file, *members["storages"]))
    tensors = _read_tensors(Stream(file, *members["tensors"]), storages)
    stream = Stream(file, *members["pickle"])
    pickle = stream.pickle(storages | tensors)
    _check_end(stream, "pickle")
    if pickle.storages:
        raise CheckpointError(f"storage {min(pickle.storages)!a:.80} lies in no record")
    return Contents("tar", pickle.value, records)


def list_members(file: File) -> Iterator[tuple[str, int, int]]:
    """Yield the name, start and end of each of the four members.

    Raises:
        CheckpointError: a header is damaged, or there is a member that is not one of these four, is
            not a plain file, or reaches outside the file.
    """
    wanted = set(MEMBERS)
    place = 0
    while wanted:
        header = file.read(place, _BLOCK)
        name, kind, size = _read_header(header, place)
        start = place + _BLOCK
        place = start + -(-size // _BLOCK) * _BLOCK
        if place > file.size:
            raise CheckpointError(f"member {name!a:.100} reaches outside the file")
        if kind == b"x":
            _check_attributes(file.read(start, size))
        elif kind not in (b"0", b"\0") or name not in wanted:
            raise CheckpointError(
                f"member {name!a:.100} of kind {kind!r}: only plain files "
                f"{', '.join(sorted(MEMBERS))} are read, each once"
            )
        else:
            wanted.remove(name)
            yield name, start, start + size
    end = -(-(place + 2 * _BLOCK) // _TAPE) * _TAPE
    if file.size != end or any(file.read(place, end - place)):
        raise CheckpointError("the tar archive does not end after its four members")


def _read_header(header: bytes, place: int) -> tuple[str, bytes, int]:
    """The name, kind and size in a header, which has the fields of POSIX.1-1988 "ustar"."""
    plain = header[:148] + b" " * 8 + header[156:]
    try:
        checksum, size = (int(_text(header[a:b]).strip(), 8) for a, b in ((148, 156), (124, 136)))
        name = _text(header[:100])
        whole = checksum == sum(plain) and size >= 0 and not any(header[345:500])
    except ValueError:
        whole, name, size = False, "", 0
    if not whole or len(header) < _BLOCK or header[257:262] != b"ustar":
        raise CheckpointError(f"tar archive damaged or cut short: no member at byte {place}")
    return name, header[156:157], size


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("ascii")


def _check_attributes(data: bytes) -> None:
    """Refuse extended attributes that would give the next member another name, size or kind."""
    if len(data) > MAX_ATTRIBUTES_BYTES:
        raise CheckpointError(f"extended attributes of more than {MAX_ATTRIBUTES_BYTES} bytes")
    while data:
        length, _, record = data.partition(b" ")
        key, is_pair, _ = record.partition(b"=")
        size = int(length) if length.isdigit() and len(length) < 6 else 0
        name = key.decode("latin-1")
        whole = len(length) < size <= len(data) and data[size - 1 : size] == b"\n"
        if not whole or not is_pair or name not in _ATTRIBUTES:
            raise CheckpointError(f"the extended attribute {name!a:.80} is refused")
        data = data[size:]


def _count(value: object, what: str) -> int:
    if type(value) is not int or not 0 <= value <= MAX_OBJECTS:
        raise CheckpointError(f"the count of {what} is not an integer of at most {MAX_OBJECTS}")
    return value


def _read_storages(stream: Stream) -> tuple[dict[str, object], dict[str, Record]]:
    """The storages and their views, by their keys in the pickle, and the storages' records."""
    storages: dict[str, Storage] = {}
    records = {}
    for _ in range(_count(stream.small_pickle(), "storages")):
        match stream.small_pickle():
            case (int(number), str(), Global(dtype=np.dtype() as dtype)):
                key = str(number)
            case _:
                raise CheckpointError("a storage that is not a key, a place and a type")
        if key in storages:
            raise CheckpointError(f"storage {key!a:.80} is there twice")
        storages[key], records[key] = stream.record(key, dtype)
    views = stream.pickle().value
    _check_end(stream, "storages")
    if not isinstance(views, list):
        raise CheckpointError("the views of storages are not a list")
    parts: dict[str, object] = {}
    for view in views:
        match view:
            case (int(number), int(root), int(start), int(length)) if str(root) in storages:
                key = str(number)
            case _:
                raise CheckpointError(
                    "a view of a storage that is not a key, a root, a start and a length"
                )
        if key in storages or key in parts:
            raise CheckpointError(f"storage {key!a:.80} is there twice")
        parts[key] = storages[str(root)].part(start, length)
    return storages | parts, records


def _read_tensors(stream: Stream, storages: dict[str, object]) -> dict[str, object]:
    tensors: dict[str, object] = {}
    for _ in range(_count(stream.small_pickle(), "tensors")):
        match stream.small_pickle():
            case (int(number), int(storage), Global()):
                key = str(number)
            case _:
                raise CheckpointError("a tensor that is not a key, a storage and a type")
        axes, _ = stream.integers("<2i")  # formerly the lower and upper halves of one integer
        if not 0 <= axes <= MAX_AXES:
            raise CheckpointError(f"tensor {key!a:.80} has {axes} axes")
        shape, strides = stream.integers(f"<{axes}q"), stream.integers(f"<{axes}q")
        (offset,) = stream.integers("<q")
        if key in tensors or key in storages:
            raise CheckpointError(f"tensor {key!a:.80} is there twice")
        tensors[key] = describe_tensor(storages.get(str(storage)), offset, shape, strides)
    _check_end(stream, "tensors")
    return tensors


def _check_end(stream: Stream, name: str) -> None:
    if stream.left:
        raise CheckpointError(f"member {name!a} has extra bytes at its end: {stream.left}")
