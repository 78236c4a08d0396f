"""Checkpoints built byte by byte, for those that PyTorch no longer writes or never would."""

import io
import struct
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


def patched(data: bytes, *, directory: dict[int, bytes], local: dict[int, bytes]) -> bytes:
    """A zip file with bytes changed in the first member's directory entry and own header."""
    changed = bytearray(data)
    for start, changes in ((data.index(b"PK\1\2"), directory), (0, local)):
        for place, value in changes.items():
            changed[start + place : start + place + len(value)] = value
    return bytes(changed)
