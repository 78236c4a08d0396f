"""A strict reader of the zip archives that `torch.save` writes."""

import struct

from weights_converter.errors import CheckpointError
from weights_converter.files import File, Record, inflation_limit

MAX_MEMBERS = 20_000
MAX_DIRECTORY_BYTES = 16 << 20

STORED, DEFLATED = 0, 8
_ALLOWED_FLAGS = 0x0002 | 0x0004 | 0x0008 | 0x0800  # deflate level, data descriptor, UTF-8 names

# The records of APPNOTE.TXT 6.3.10, sections 4.3.7, 4.3.12 and 4.3.14 to 4.3.16.
_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")


class Archive:
    """The members of a zip archive, by name.

    Args:
        file: the whole file.

    Raises:
        CheckpointError: the directory is damaged; there are too many members; or members are
            duplicate, overlapping, encrypted, compressed by a method other than deflate, or too
            large when inflated.
    """

    def __init__(self, file: File):
        self.file = file
        start, end, count = _find_directory(file)
        directory = file.read(start, end - start)
        self.records: dict[str, Record] = {}
        spans = []
        place = 0
        for _ in range(count):
            header, record, place = _read_member(file, directory, place)
            if record.name in self.records:
                raise CheckpointError(f"duplicate record {record.name!a:.200}")
            self.records[record.name] = record
            spans.append((header, record))
        if place != len(directory):
            raise CheckpointError("the zip directory continues after its last entry")
        self._check_sizes(spans, start)

    def _check_sizes(self, spans: list[tuple[int, Record]], directory: int) -> None:
        free = 0
        for header, record in sorted(spans, key=lambda span: span[0]):
            if header < free or record.end > directory:
                raise CheckpointError(f"record {record.name!a:.200} overlaps another")
            free = record.end
        inflated = sum(record.size for _, record in spans if record.deflated)
        if inflated > inflation_limit(self.file):
            raise CheckpointError(
                f"deflated records of {inflated} bytes in a file of {self.file.size} bytes"
            )

    def find(self, name: str) -> Record:
        """The record of a member.

        Raises:
            CheckpointError: there is no such member.
        """
        if name not in self.records:
            raise CheckpointError(f"record {name!a:.200} is missing")
        return self.records[name]

    def read(self, name: str) -> bytes:
        """The inflated bytes of a member.

        Raises:
            CheckpointError: there is no such member, or a deflated member is damaged or does not
                have the size that it declares.
        """
        record = self.find(name)
        if record.deflated:
            return self.file.inflate(record).tobytes()
        return self.file.read(record.start, record.size)


def _unpack(form: struct.Struct, magic: bytes, data: bytes, what: str) -> tuple:
    if len(data) < form.size or not data.startswith(magic):
        raise CheckpointError(f"zip archive damaged or cut short: no {what}")
    return form.unpack_from(data)


def _find_directory(file: File) -> tuple[int, int, int]:
    """The start and end of the central directory, and the number of members it lists."""
    end = file.size - _END.size
    found = file.read(max(end, 0), _END.size)
    _, *disks, here, count, size, start, comment = _unpack(
        _END, b"PK\5\6", found, "end of central directory (without a comment)"
    )
    narrow = (*disks, here, count, size, start)
    locator = end - _LOCATOR64.size
    found = file.read(max(locator, 0), _LOCATOR64.size)
    if found.startswith(b"PK\6\7"):
        _, _, end64, _ = _LOCATOR64.unpack(found)
        found = file.read(end64, _END64.size) if end64 == locator - _END64.size else b""
        what = "zip64 end of directory before its locator"
        _, _, _, _, *wide = _unpack(_END64, b"PK\6\6", found, what)
        for value, full in zip(narrow, wide, strict=True):
            if value not in (full, 0xFFFF, 0xFFFFFFFF):
                raise CheckpointError("the two ends of the zip directory contradict each other")
        *disks, here, count, size, start = wide
        end = end64
    if comment or any(disks) or here != count or start + size != end:
        raise CheckpointError("a zip archive with a comment, of several parts, or with a gap")
    if count > MAX_MEMBERS:
        raise CheckpointError(f"{count} records, more than {MAX_MEMBERS}")
    if size > MAX_DIRECTORY_BYTES:
        raise CheckpointError(f"a zip directory of more than {MAX_DIRECTORY_BYTES} bytes")
    return start, end, count


def _read_member(file: File, directory: bytes, place: int) -> tuple[int, Record, int]:
    """Read the member that the directory describes at `place`.

    Returns:
        The place of the member's header, its record, and the place of the next directory entry.
    """
    entry = directory[place : place + _CENTRAL.size]
    fields = _unpack(_CENTRAL, b"PK\1\2", entry, f"directory entry at its byte {place}")
    _, _, _, flags, method, _, _, crc, packed, size, *lengths, _, _, _, header = fields
    names, extras, comments = lengths
    place += _CENTRAL.size
    raw_name = directory[place : place + names]
    extra = directory[place + names : place + names + extras]
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
    found = file.read(header, _LOCAL.size + names)
    local = _unpack(_LOCAL, b"PK\3\4", found, f"header of record {name!a:.200}")
    _, _, local_flags, local_method, _, _, _, _, _, local_names, local_extras = local
    start = header + _LOCAL.size + local_names + local_extras
    same = (local_flags, local_method, local_names) == (flags, method, names)
    if not same or found[_LOCAL.size :] != raw_name:
        raise CheckpointError(f"record {name!a:.200} contradicts its own header")
    if method == STORED and size != packed:
        raise CheckpointError(
            f"record {name!a:.200} is stored uncompressed but has two different sizes"
        )
    record = Record(name, start, start + packed, size, crc if method == DEFLATED else None)
    return header, record, place + names + extras + comments


def _widen(narrow: tuple[int, int, int], extra: bytes, name: str) -> list[int]:
    """Replace the 32-bit fields whose bits are all ones by those of the zip64 extra field."""
    wide: bytes | None = None
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            if wide is not None:
                raise CheckpointError(f"record {name!a:.200} has its 64-bit sizes twice")
            wide = extra[4 : 4 + length]
        extra = extra[4 + length :]
    fields = []
    for value in narrow:
        if value == 0xFFFFFFFF:
            if wide is None or len(wide) < 8:
                raise CheckpointError(f"record {name!a:.200} lacks its 64-bit sizes")
            value, wide = int.from_bytes(wide[:8], "little"), wide[8:]
        fields.append(value)
    return fields
