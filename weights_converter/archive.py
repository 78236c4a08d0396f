"""The zip archive that `torch.save` writes, read strictly and without a copy where it is stored."""

import struct
import zlib
from dataclasses import dataclass

from weights_converter.errors import CheckpointError

MAX_MEMBERS = 20_000
MAX_INFLATED_BYTES = 64 << 20  # or MAX_INFLATION times the file, whichever is more
MAX_INFLATION = 16

STORED, DEFLATED = 0, 8
_ALLOWED_FLAGS = 0x0002 | 0x0004 | 0x0008 | 0x0800  # deflate level, data descriptor, UTF-8 names
_STEP = 64 << 10

# The records of APPNOTE.TXT 6.3.10, sections 4.3.7, 4.3.12 and 4.3.14 to 4.3.16.
_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")


@dataclass(frozen=True, slots=True)
class Member:
    """One member of an archive; its compressed bytes are `data[start:end]`."""

    name: str
    method: int
    crc: int
    size: int
    header: int
    start: int
    end: int


class Archive:
    """The members of a zip archive, by name.

    Args:
        data: the whole file.

    Raises:
        CheckpointError: a damaged directory, or members that are too many, duplicate, overlapping,
            encrypted, compressed other than by deflate, or that inflate beyond all proportion.
    """

    def __init__(self, data: memoryview):
        self.data = data
        directory, count = _find_directory(data)
        self.members: dict[str, Member] = {}
        place = directory
        for _ in range(count):
            member, place = _read_member(data, place)
            if member.name in self.members:
                raise CheckpointError(f"duplicate record {member.name!a:.200}")
            self.members[member.name] = member
        self._check_sizes(directory)

    def _check_sizes(self, directory: int) -> None:
        free = 0
        for member in sorted(self.members.values(), key=lambda member: member.header):
            if member.header < free or member.end > directory:
                raise CheckpointError(f"record {member.name!a:.200} overlaps another")
            free = member.end
        inflated = sum(m.size for m in self.members.values() if m.method == DEFLATED)
        if inflated > max(MAX_INFLATED_BYTES, MAX_INFLATION * len(self.data)):
            raise CheckpointError(
                f"deflated records of {inflated} bytes in a file of {len(self.data)} bytes"
            )

    def size(self, name: str) -> int:
        """Bytes of a member, inflated.

        Raises:
            CheckpointError: there is no such member.
        """
        return self._find(name).size

    def read(self, name: str) -> memoryview:
        """A member's bytes: a view of the file where it is stored, else inflated.

        Raises:
            CheckpointError: there is no such member, or a deflated one is damaged or not of the
                size it declares.
        """
        member = self._find(name)
        packed = self.data[member.start : member.end]
        return packed if member.method == STORED else memoryview(_inflate(packed, member))

    def _find(self, name: str) -> Member:
        if name not in self.members:
            raise CheckpointError(f"record {name!a:.200} is missing")
        return self.members[name]


def _unpack(form: struct.Struct, magic: bytes, data: memoryview, place: int, what: str) -> tuple:
    if place < 0 or place + form.size > len(data) or data[place : place + 4] != magic:
        raise CheckpointError(f"zip archive damaged or cut short: no {what} at byte {place}")
    return form.unpack_from(data, place)


def _find_directory(data: memoryview) -> tuple[int, int]:
    """Where the central directory starts, and how many members it lists."""
    end = len(data) - _END.size
    _, *disks, here, count, size, start, comment = _unpack(
        _END, b"PK\5\6", data, end, "end of central directory (without a comment)"
    )
    narrow = (*disks, here, count, size, start)
    locator = end - _LOCATOR64.size
    if locator >= 0 and data[locator : locator + 4] == b"PK\6\7":
        _, _, end64, _ = _LOCATOR64.unpack_from(data, locator)
        _, _, _, _, *wide = _unpack(_END64, b"PK\6\6", data, end64, "zip64 end of directory")
        for value, full in zip(narrow, wide, strict=True):
            if value not in (full, 0xFFFF, 0xFFFFFFFF):
                raise CheckpointError("the two ends of the zip directory contradict each other")
        *disks, here, count, size, start = wide
        end = end64
    if comment or any(disks) or here != count or start + size != end:
        raise CheckpointError("a zip archive with a comment, of several parts, or with a gap")
    if count > MAX_MEMBERS:
        raise CheckpointError(f"{count} records, more than {MAX_MEMBERS}")
    return start, count


def _read_member(data: memoryview, place: int) -> tuple[Member, int]:
    """The member that the directory describes at `place`, and the place of the next one."""
    entry = _unpack(_CENTRAL, b"PK\1\2", data, place, "directory entry")
    _, _, _, flags, method, _, _, crc, packed, size, *lengths, _, _, _, header = entry
    names, extras, comments = lengths
    place += _CENTRAL.size
    raw_name = bytes(data[place : place + names])
    extra = data[place + names : place + names + extras]
    try:
        name = raw_name.decode()
    except UnicodeDecodeError:
        raise CheckpointError(f"record name {raw_name!r:.200} is not UTF-8") from None
    size, packed, header = _widen((size, packed, header), extra, name)
    if flags & ~_ALLOWED_FLAGS or method not in (STORED, DEFLATED):
        raise CheckpointError(
            f"record {name!a:.200} has flags {flags:#06x} and method {method}: "
            "only plain or deflated records are read, never encrypted ones"
        )
    local = _unpack(_LOCAL, b"PK\3\4", data, header, f"header of record {name!a:.200}")
    _, _, local_flags, local_method, _, _, _, _, _, local_names, local_extras = local
    after = header + _LOCAL.size
    start = after + local_names + local_extras
    same = (local_flags, local_method) == (flags, method)
    if not same or data[after : after + local_names] != raw_name:
        raise CheckpointError(f"record {name!a:.200} contradicts its own header")
    if method == STORED and size != packed:
        raise CheckpointError(f"record {name!a:.200} is stored but has two sizes")
    member = Member(name, method, crc, size, header, start, start + packed)
    return member, place + names + extras + comments


def _widen(narrow: tuple[int, int, int], extra: memoryview, name: str) -> list[int]:
    """Replace the 32-bit fields that are all ones by those of the zip64 extra field."""
    wide = b""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            wide = bytes(extra[4 : 4 + length])
        extra = extra[4 + length :]
    fields = []
    for value in narrow:
        if value == 0xFFFFFFFF:
            if len(wide) < 8:
                raise CheckpointError(f"record {name!a:.200} lacks its 64-bit sizes")
            value, wide = int.from_bytes(wide[:8], "little"), wide[8:]
        fields.append(value)
    return fields


def _inflate(packed: memoryview, member: Member) -> bytearray:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = bytearray(member.size)
    filled = 0
    for place in range(0, len(packed), _STEP):
        try:
            piece = stream.decompress(packed[place : place + _STEP], member.size - filled + 1)
        except zlib.error as error:
            raise CheckpointError(f"record {member.name!a:.200}: {error}") from None
        if filled + len(piece) > member.size:
            raise CheckpointError(f"record {member.name!a:.200} inflates beyond its declared size")
        inflated[filled : filled + len(piece)] = piece
        filled += len(piece)
    complete = stream.eof and not stream.unused_data and filled == member.size
    if not complete or zlib.crc32(inflated) != member.crc:
        raise CheckpointError(f"record {member.name!a:.200} is damaged")
    return inflated
