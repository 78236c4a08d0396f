"""The part of the hostile corpus that is in the formats around PyTorch's own two."""

import io
import struct
import tarfile
import zipfile
from collections.abc import Iterator

from tests.unit.weights_converter.crafted import (
    SIX_FLOATS,
    TAR_MEMBERS,
    TAR_PICKLE,
    TAR_STORAGES,
    TAR_TENSORS,
    archive,
    call,
    entry,
    group,
    integer,
    integers,
    legacy,
    named,
    pickled,
    safetensors,
    state_dict,
    storage,
    tar,
    tar_tensor,
    tensor,
    text,
)


def corpus(command: str) -> Iterator[tuple[str, bytes, str]]:
    """Yield the name of each hostile kind, its file, and words of its refusal."""
    for kinds in (_headers(), _tars(command), _tar_headers(), _wide_zips(), _shared(), _mixed()):
        yield from kinds


def _headers() -> Iterator[tuple[str, bytes, str]]:
    whole = entry(0, 24)
    half, rest = entry(0, 12, (3,)), entry(12, 24, (3,))
    yield "safetensors overlapping", safetensors({"a": half, "b": entry(8, 20, (3,))}), "overlaps"
    yield "safetensors the same range", safetensors({"a": whole, "b": whole}), "'b' overlaps"
    yield "safetensors with a gap", safetensors({"a": entry(4, 24, (5,))}), "after a gap"
    yield "safetensors with a gap inside", safetensors({"a": half, "b": entry(16, 24, (2,))}), "gap"
    yield "safetensors beyond the file", safetensors({"a": half, "b": entry(12, 28, (4,))}), "'b' e"
    far = entry(0, 2**62, (2**40, 2**20))
    yield "safetensors far beyond the file", safetensors({"a": far}), "'a' has sizes whose product"
    yield "safetensors with more bytes", safetensors({"a": half}), "12 bytes follow"
    yield "safetensors of nothing with bytes", safetensors({}), "24 bytes follow"
    yield "safetensors backwards", safetensors({"a": entry(24, 0)}), "not a range"
    yield "safetensors before the data", safetensors({"a": entry(-24, 0)}), "not a range"
    yield "safetensors larger than its shape", safetensors({"a": entry(0, 24, (5,))}), "needs 20"
    yield "safetensors smaller than its shape", safetensors({"a": entry(0, 24, (7,))}), "needs 28"
    huge = entry(0, 24, (2**32, 2**32))
    yield "safetensors whose shape overflows", safetensors({"a": huge}), "needs 7378"
    none = entry(0, 0, (2**40, 2**40, 0))
    yield "safetensors whose shape overflows at zero", safetensors({"a": none}, b""), "overflows"
    many = entry(0, 24, (1,) * 1_000_000)
    yield "safetensors of many axes", safetensors({"a": many}), "1000000 axes"
    yield "safetensors of negative size", safetensors({"a": entry(0, 24, (-6,))}), "not a count"
    yield "safetensors of half a size", safetensors({"a": entry(0, 24, (6.0,))}), "not a count"
    yield "safetensors of true size", safetensors({"a": entry(0, 24, (True,))}), "not a count"
    yield "safetensors of unknown dtype", safetensors({"a": entry(0, 24, dtype="F7")}), "'F7'"
    small = entry(0, 24, (24,), "F8_E4M3")
    yield "safetensors of float8", safetensors({"a": small}), "'F8_E4M3'"
    short = {"dtype": "F32", "shape": [6]}
    yield "safetensors without a range", safetensors({"a": short}), "'a' has no dtype, shape and"
    yield "safetensors with more to say", safetensors({"a": whole | {"code": "x"}}), "more than"
    yield "safetensors of a list", safetensors({"a": [1]}), "'a' has no dtype"
    yield "safetensors with odd metadata", safetensors({"__metadata__": {"a": 1}}), "metadata"
    yield "safetensors with a metadata list", safetensors({"__metadata__": []}), "metadata"
    twice = b'{"a": %s, "a": %s}' % ((b'{"dtype":"U8","shape":[0],"data_offsets":[0,0]}',) * 2)
    yield "safetensors with a name twice", safetensors(twice, b""), "'a' twice"
    field = b'{"a": {"dtype":"F32","shape":[6],"shape":[6],"data_offsets":[0,24]}}'
    yield "safetensors with a field twice", safetensors(field), "'shape' twice"
    yield "safetensors with a control character", safetensors({"a\x1b[2J": whole}), "be printed"
    yield "safetensors with half a character", safetensors({"a\ud800": whole}), "be printed"
    yield "safetensors not utf-8", safetensors(b'{"\xff": 1}'), "not JSON"
    yield "safetensors in utf-16", safetensors('{"a": 1}'.encode("utf-16-le")), "not JSON"
    yield "safetensors with more after it", safetensors(b'{"a": 1} {}'), "not JSON"
    yield "safetensors with nan", safetensors(b'{"a": NaN}'), "NaN"
    yield "safetensors with a huge integer", safetensors(b'{"a": ' + b"9" * 10_000 + b"}"), "JSON"
    deep = b'{"a":' + b"[" * 90_000 + b"]" * 90_000 + b"}"
    yield "safetensors nested deep", safetensors(deep), "nested too deep"
    objects = b'{"a":' * 90_000 + b"1" + b"}" * 90_000
    yield "safetensors of nested objects", safetensors(objects), "nested too deep"
    lists = b'{"a":[' + b"[]," * 1_390_000 + b"[]]}"
    yield "safetensors of many lists", safetensors(lists), "more than 100000 lists"
    names = b"{" + b",".join(b'"%x":0' % i for i in range(400_000)) + b"}"
    yield "safetensors of many names", safetensors(names), "400000 tensors"
    crowd = {str(i): entry(0, 0, (0,)) for i in range(20_001)}
    yield "safetensors of many tensors", safetensors(crowd, b""), "20001 tensors"
    big = b"{" + b" " * (200 << 20) + b"}"
    yield "safetensors with a header of 200 MB", safetensors(big, b""), "a header of 209715202"
    lying = struct.pack("<Q", 2**39) + b"{}"
    yield "safetensors with a header of 512 GB", lying, "a header of 549755813888"
    yield "safetensors cut in its header", struct.pack("<Q", 100) + b"{}", "in a file of 10 bytes"
    bools = safetensors({"a": entry(0, 6, dtype="BOOL")}, b"\0\1\2\3\4\5")
    yield "safetensors with bools of 5", bools, "bools"
    assert half["data_offsets"][1] == rest["data_offsets"][0]


def _tars(command: str) -> Iterator[tuple[str, bytes, str]]:
    system = call("os", "system", text(command))
    stacked = text("os") + text("system") + b"\x93" + group(text(command)) + b"R"
    for name, code in (("global", system), ("stack global", stacked)):
        for member in ("pickle", "storages", "tensors"):
            yield f"tar {name} in {member}", tar(**{member: pickled(code)}), "'os.system'"
    yield "tar inst", tar(pickle=pickled(b"(" + text(command) + b"ios\nsystem\n")), "opcode INST"
    yield "tar container", tar(pickle=pickled(group(text("a"), b"N", b"N") + b"Q")), "not a storage"
    yield "tar of an unknown object", tar(pickle=pickled(b"}" + text("9") + b"Qs")), "not a storage"
    yield (
        "tar of an object by number",
        tar(pickle=pickled(b"}" + integer(1) + b"Qs")),
        "not a storage",
    )
    inner = state_dict(tensor())
    yield "tar of a storage not its own", tar(pickle=inner), "lies in no record"
    yield (
        "tar with a second pickle",
        tar(pickle=TAR_PICKLE + TAR_PICKLE),
        "'pickle' has extra bytes",
    )
    yield "tar with more tensors", tar(tensors=TAR_TENSORS + b"N."), "'tensors' has extra bytes"
    yield "tar with more storages", tar(storages=TAR_STORAGES + b"N."), "'storages' has extra bytes"

    def tensors(*parts: bytes) -> bytes:
        return tar(tensors=pickled(integer(len(parts))) + b"".join(parts))

    yield "tar offset outside", tensors(tar_tensor(1, 7, offset=1)), "ends at 7"
    yield "tar offset negative", tensors(tar_tensor(1, 7, offset=-1)), "not a count"
    yield "tar size outside", tensors(tar_tensor(1, 7, (7,))), "ends at 7"
    yield "tar size negative", tensors(tar_tensor(1, 7, (-6,))), "size has an entry"
    yield "tar size overflows", tensors(tar_tensor(1, 7, (2**62, 2**62), (0, 0))), "overflows"
    yield "tar stride outside", tensors(tar_tensor(1, 7, strides=(2,))), "ends at 11"
    yield "tar stride negative", tensors(tar_tensor(1, 7, strides=(-1,))), "stride has an entry"
    yield "tar axes negative", tensors(tar_tensor(1, 7, axes=-1)), "-1 axes"
    yield "tar axes beyond number", tensors(tar_tensor(1, 7, axes=2**31 - 1)), "2147483647 axes"
    yield "tar axes cut short", tensors(tar_tensor(1, 7, axes=60)), "are left"
    yield "tar tensor of no storage", tensors(tar_tensor(1, 99)), "needs a storage"
    yield "tar tensor twice", tensors(tar_tensor(1, 7), tar_tensor(1, 7)), "'1' is there twice"
    yield "tar tensor like a storage", tensors(tar_tensor(7, 7)), "'7' is there twice"
    yield "tar tensor view outside", tensors(tar_tensor(1, 8, (5,))), "ends at 5"
    for member in ("tensors", "storages"):
        yield (
            f"tar count of {member} huge",
            tar(**{member: pickled(integer(2**40))}),
            "not an integer",
        )
        yield (
            f"tar count of {member} negative",
            tar(**{member: pickled(integer(-1))}),
            "not an integer",
        )
        yield f"tar count of {member} text", tar(**{member: pickled(text("1"))}), "not an integer"
        odd = pickled(integer(1)) + pickled(b"N")
        yield f"tar odd {member}", tar(**{member: odd}), f"a {member[:-1]} that is not a key"

    def storages(kind: str, count: int, views: bytes = b"]", times: int = 1) -> bytes:
        one = pickled(group(integer(7), text("cpu"), named("torch", kind)))
        one += struct.pack("<q", count) + SIX_FLOATS
        return tar(storages=pickled(integer(times)) + one * times + pickled(views))

    def views(*numbers: int) -> bytes:
        return b"]" + integers(*numbers) + b"a"

    yield "tar storage negative", storages("FloatStorage", -6), "the file declares -6"
    yield "tar storage huge", storages("FloatStorage", 2**62), "the file declares 4611"
    yield "tar storage twice", storages("FloatStorage", 6, times=2), "'7' is there twice"
    yield "tar storage of no dtype", storages("Size", 6), "a storage that is not a key"
    yield "tar storage of complex", storages("ComplexFloatStorage", 3), "ComplexFloatStorage"
    yield "tar view outside", storages("FloatStorage", 6, views(8, 7, 3, 4)), "from 3 on lie"
    yield "tar view negative", storages("FloatStorage", 6, views(8, 7, -1, 4)), "from -1 on lie"
    yield "tar view of none", storages("FloatStorage", 6, views(8, 9, 0, 1)), "a view of a storage"
    yield "tar view of itself", storages("FloatStorage", 6, views(7, 7, 0, 1)), "'7' is there twice"
    yield "tar views of no kind", storages("FloatStorage", 6, b"}"), "not a list"


def _tar_headers() -> Iterator[tuple[str, bytes, str]]:
    def members(*infos: tuple[str, bytes, dict]) -> bytes:
        target = io.BytesIO()
        with tarfile.open(fileobj=target, mode="w:", format=tarfile.PAX_FORMAT) as file:
            for name, data, fields in infos:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                for key, value in fields.items():
                    setattr(info, key, value)
                file.addfile(info, io.BytesIO(data))
        return target.getvalue()

    good = [(name, data, {}) for name, data in TAR_MEMBERS.items()]
    link = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0}
    whole = members(*good)
    yield "tar link", members(("storages", b"", link), *good[:3]), "'storages' of kind b'2'"
    hard = link | {"type": tarfile.LNKTYPE}
    yield "tar hard link", members(("storages", b"", hard), *good[:3]), "of kind b'1'"
    device = {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5}
    yield "tar device", members(("storages", b"", device), *good[:3]), "of kind b'3'"
    sparse = {"type": tarfile.GNUTYPE_SPARSE}
    yield "tar sparse", members(("storages", b"", sparse), *good[:3]), "of kind b'S'"
    yield "tar folder", members(("storages", b"", {"type": tarfile.DIRTYPE})), "of kind b'5'"
    yield "tar stranger", members(("../../etc/passwd", b"", {}), *good), "'../../etc/passwd'"
    yield "tar member twice", members(good[0], good[0], *good[1:]), "'sys_info' of kind"
    yield "tar one more member", members(*good, good[0]), "does not end"
    yield "tar member missing", members(*good[:3]), "no member at byte"
    other = {"pax_headers": {"path": "storages"}}
    yield "tar renamed", members(("sys_info", b"", other), *good), "'path' is refused"
    size = {"pax_headers": {"size": "99999999"}}
    yield "tar resized", members(("sys_info", b"", size), *good), "'size' is refused"
    holes = {"pax_headers": {"GNU.sparse.size": "99999999"}}
    yield "tar with holes", members(("sys_info", b"", holes), *good), "'GNU.sparse.size'"
    long = {"pax_headers": {"uname": "x" * 10_000}}
    yield "tar of long attributes", members(("sys_info", b"", long), *good), "extended attributes"
    blocks = -(-len(whole.rstrip(b"\0")) // 512)
    yield "tar without an end", whole[: 512 * blocks], "does not end"
    yield "tar cut short", whole[: 512 * (blocks - 1)], "reaches outside the file"
    yield "tar with an end too long", whole + bytes(128 << 10), "does not end"
    yield "tar with more behind it", whole + state_dict(tensor()), "does not end"
    yield "tar sum wrong", whole[:148] + b"0000000" + whole[155:], "no member at byte 0"
    zeros = bytes(257) + b"ustar" + bytes(250)
    yield "tar of zeros", zeros, "no member at byte 0"
    prefix = bytearray(whole)
    prefix[345:349] = b"/etc"
    prefix[148:156] = b"%06o\0 " % (sum(prefix[:148]) + sum(prefix[156:512]) + 8 * 32)
    yield "tar with a folder in front", bytes(prefix), "no member at byte 0"
    beyond = bytearray(whole)
    beyond[124:136] = b"77777777777\0"
    beyond[148:156] = b"%06o\0 " % (sum(beyond[:148]) + sum(beyond[156:512]) + 8 * 32)
    yield "tar beyond the file", bytes(beyond), "reaches outside the file"


def _wide_zips() -> Iterator[tuple[str, bytes, str]]:
    """Zip archives whose 64-bit fields are used against the reader."""
    plain = archive(state_dict(tensor()))
    entry, end = plain.index(b"PK\1\2"), plain.index(b"PK\5\6")
    name = b"a/data/0"

    def widened(extra: bytes, packed: int = 2**32 - 1, place: int = 0) -> bytes:
        """The first member's sizes, and perhaps its place, left to an extra field."""
        changed = bytearray(plain[entry:end])
        changed[20:28] = struct.pack("<2L", packed, 2**32 - 1)
        changed[42:46] = struct.pack("<L", place)
        changed[30:32] = struct.pack("<H", len(extra))
        directory = bytes(changed[: 46 + len(name)]) + extra + bytes(changed[46 + len(name) :])
        last = bytearray(plain[end:])
        last[12:16] = struct.pack("<L", len(directory))
        return plain[:entry] + directory + bytes(last)

    def field(*values: int) -> bytes:
        return struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values)

    yield "wide sizes huge", widened(field(2**63, 2**63)), "overlaps"
    yield "wide sizes that differ", widened(field(24, 25)), "two different sizes"
    yield "wide sizes twice", widened(field(24, 24) + field(24, 24)), "64-bit sizes twice"
    yield "wide sizes cut short", widened(field(24)), "64-bit sizes"
    yield "wide place huge", widened(field(24, 24, 2**63), place=2**32 - 1), "header of record"
    yield "wide place missing", widened(field(24, 24), place=2**32 - 1), "64-bit sizes"

    def end64(count: int, size: int, start: int, place: int = end, gap: bytes = b"") -> bytes:
        wide = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
        wide += gap + struct.pack("<4sLQL", b"PK\6\7", 0, place, 1)
        ones = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, *(2**16 - 1,) * 2, *(2**32 - 1,) * 2, 0)
        return plain[:end] + wide + ones

    size = end - entry
    yield "wide end elsewhere", end64(2, size, entry, place=0), "before its locator"
    yield "wide end behind the file", end64(2, size, entry, place=2**63), "before its locator"
    yield "wide end with a gap", end64(2, size, entry, gap=b"gap"), "before its locator"
    yield "wide end of many members", end64(2**63, size, entry), "9223372036854775808 records"
    yield "wide end of a huge directory", end64(2, 2**63, entry), "gap"
    yield "wide end of a far directory", end64(2, size, 2**63), "gap"
    yield "wide end with fewer members", end64(1, size, entry), "continues after its last entry"
    ones = plain[:end] + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2, 2, *(2**32 - 1,) * 2, 0)
    yield "wide end missing", ones, "gap"


def _shared() -> Iterator[tuple[str, bytes, str]]:
    """Few bytes that many tensors would make into many."""
    whole = storage("0", "ByteStorage", 1 << 20)
    one = tensor(whole, None, integers(1 << 20), integers(1))
    values = b"}(" + b"".join(text(str(i)) + one for i in range(300)) + b"u"
    raw = {"data/0": bytes(1 << 20)}
    yield "shared a hundredfold", archive(pickled(values), raw), "tensors of 314572800 bytes"
    yield (
        "shared a hundredfold, big-endian",
        archive(pickled(values), raw | {"byteorder": b"big"}),
        "tensors of 314572800 bytes",
    )
    ends = tensor(whole, None, integers(2), integers(2**20 - 1))
    values = b"}(" + b"".join(text(str(i)) + ends for i in range(300)) + b"u"
    yield "shared by its ends", archive(pickled(values), raw), "tensors of 314572800 bytes"
    first = tensor(whole, None, integers(1), integers(1))
    values = b"}(" + b"".join(text(str(i)) + first for i in range(300)) + b"u"
    packed = archive(pickled(values), raw, method=zipfile.ZIP_DEFLATED)
    yield "deflated and shared", packed, "tensors of 314572800 bytes"


def _mixed() -> Iterator[tuple[str, bytes, str]]:
    """One format in the clothes of another, and names that no terminal should be shown."""
    plain, pickle = archive(state_dict(tensor())), state_dict(tensor())
    inside = safetensors({"a": entry(0, len(plain), (len(plain),), "U8")}, plain)
    yield "zip behind a safetensors header that is cut", inside[:-1], "outside the file"
    yield "zip in front of a safetensors file", plain + safetensors({"a": entry(0, 24)}), "zip"
    yield "legacy in front of a zip", legacy(pickle) + plain, "follow the last storage"
    yield "zip behind a pickle", pickle + plain, "magic number"
    tarred = tar(pickle=plain)
    yield "zip in a tar", tarred, "opcode"
    escape = pickled(b"}" + text("\x1b[2J") + tensor() + b"s")
    yield "name of control characters", archive(escape), "be printed"
    half = pickled(b"}X\3\0\0\0\xed\xa0\x80" + tensor() + b"s")
    yield "name of half a character", archive(half), "be printed"
    order = {"data/0": SIX_FLOATS, "byteorder": bytes(9 << 20)}
    yield "byte order of 9 MB", archive(pickle, order), 'contains neither "little" nor "big"'
