"""Checkpoints built byte by byte, for those that PyTorch no longer writes or never would."""

import io
import json
import struct
import tarfile
import zipfile

SIX_FLOATS = struct.pack("<6f", *range(6))


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integer(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def group(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def integers(*values: int) -> bytes:
    return group(*map(integer, values))


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return named(module, name) + group(*arguments) + b"R"


def storage(key: str = "0", kind: str = "FloatStorage", count: int = 6, *view: bytes) -> bytes:
    parts = text("storage"), named("torch", kind), text(key), text("cpu"), integer(count), *view
    return group(*parts) + b"Q"


def tensor(
    of: bytes | None = None,
    offset: bytes | None = None,
    size: bytes | None = None,
    stride: bytes | None = None,
    *more: bytes,
) -> bytes:
    parts = of or storage(), offset or integer(0), size or integers(6), stride or integers(1)
    hooks = call("collections", "OrderedDict")
    return call("torch._utils", "_rebuild_tensor_v2", *parts, b"\x89", hooks, *more)


def pickled(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


def state_dict(value: bytes) -> bytes:
    return pickled(b"}" + text("w") + value + b"s")


def archive(
    pickle: bytes, records: dict[str, bytes] | None = None, *, method: int = zipfile.ZIP_STORED
) -> bytes:
    """A zip checkpoint whose first member is its record 0."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as file:
        for name, record in (records or {"data/0": SIX_FLOATS}).items():
            file.writestr(f"a/{name}", record)
        file.writestr("a/data.pkl", pickle)
    return target.getvalue()


def legacy(
    pickle: bytes, data: bytes = struct.pack("<q", 6) + SIX_FLOATS, keys: tuple[str, ...] = ("0",)
) -> bytes:
    """A checkpoint in the format before the zip archive."""
    head = pickled(integer(0x1950A86A20F9469CFC6C)) + pickled(integer(1001))
    system = pickled(b"}" + text("little_endian") + b"\x88s")
    return head + system + pickle + pickled(b"](" + b"".join(map(text, keys)) + b"e") + data


TAR_STORAGES = (
    pickled(integer(1))
    + pickled(group(integer(7), text("cpu"), named("torch", "FloatStorage")))
    + struct.pack("<q", 6)
    + SIX_FLOATS
    + pickled(b"]" + group(integer(8), integer(7), integer(1), integer(4)) + b"a")
)


def tar_tensor(
    key: int,
    of: int,
    shape: tuple[int, ...] = (6,),
    strides: tuple[int, ...] = (1,),
    offset: int = 0,
    axes: int | None = None,
) -> bytes:
    head = pickled(group(integer(key), integer(of), named("torch", "FloatTensor")))
    head += struct.pack("<2i", len(shape) if axes is None else axes, 0)
    return head + struct.pack(f"<{2 * len(shape) + 1}q", *shape, *strides, offset)


TAR_TENSORS = pickled(integer(2)) + tar_tensor(1, 7) + tar_tensor(2, 8, (2,), (3,))
TAR_PICKLE = pickled(b"}(" + text("w") + text("1") + b"Q" + text("v") + text("2") + b"Q" + b"u")
TAR_MEMBERS = {
    "sys_info": pickled(b"}"),
    "pickle": TAR_PICKLE,
    "tensors": TAR_TENSORS,
    "storages": TAR_STORAGES,
}


def tar(*, mtime: float = 1.5, **changes: bytes) -> bytes:
    """A checkpoint as PyTorch 0.1 wrote it: `w` of 0 to 5, and `v` of 1 and 4 as a view."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:", format=tarfile.PAX_FORMAT) as file:
        for name, data in (TAR_MEMBERS | changes).items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), mtime  # a fraction has a header of its own
            file.addfile(info, io.BytesIO(data))
    return target.getvalue()


def entry(begin: int, end: int, shape: tuple = (6,), dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def safetensors(header: dict | bytes, data: bytes = SIX_FLOATS) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def patched(data: bytes, *, directory: dict[int, bytes], local: dict[int, bytes]) -> bytes:
    """A zip file with bytes changed in the first member's directory entry and own header."""
    changed = bytearray(data)
    for start, changes in ((data.index(b"PK\1\2"), directory), (0, local)):
        for place, value in changes.items():
            changed[start + place : start + place + len(value)] = value
    return bytes(changed)
