"""The hostile corpus: checkpoints that must be refused, each with the words of its refusal.

Where a kind has a payload, it would make the file `sentinel` if anything ran it.
"""

import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tests.unit.weights_converter import hostile_formats
from tests.unit.weights_converter.crafted import (
    SIX_FLOATS,
    archive,
    call,
    group,
    integer,
    integers,
    legacy,
    named,
    patched,
    pickled,
    state_dict,
    storage,
    tensor,
    text,
)


def corpus(sentinel: Path) -> Iterator[tuple[str, bytes, str]]:
    """Yield the name of each hostile kind, its file, and words of its refusal."""
    for name, pickle, words in _programs(f"touch {sentinel}"):
        yield name, archive(pickle), words
        yield f"legacy {name}", legacy(pickle), words
    for name, pickle, words in _values():
        yield name, archive(pickle), words
    yield from _archives()
    yield from _streams()
    yield from _strangers()
    yield from hostile_formats.corpus(f"touch {sentinel}")


def _programs(command: str) -> Iterator[tuple[str, bytes, str]]:
    system = call("os", "system", text(command))
    ordered = named("collections", "OrderedDict")
    stacked = text("os") + text("system") + b"\x93" + group(text(command)) + b"R"
    dotted = text("torch") + text("storage.os.system") + b"\x93" + group(text(command)) + b"R"
    attribute = b"}" + text("__class__") + text("x") + b"s"

    yield "global", state_dict(system), "'os.system'"
    yield "global of builtins", state_dict(call("builtins", "eval", text("1"))), "'builtins.eval'"
    yield "global mentioned", state_dict(named("subprocess", "Popen")), "'subprocess.Popen'"
    yield "global of torch", state_dict(call("torch.hub", "load", text("x"))), "'torch.hub.load'"
    yield "global cut short", b"\x80\x02cos\nsys", "GLOBAL at byte 2: the name is cut short"
    yield "global not utf-8", state_dict(b"c\xff\n\xff\n"), "GLOBAL"
    yield "stack global", state_dict(stacked), "'os.system'"
    yield "stack global dotted", state_dict(dotted), "'torch.storage.os.system'"
    yield "stack global of ints", state_dict(b"K\1K\1\x93"), "must be strings"
    yield "inst", state_dict(b"(" + text(command) + b"ios\nsystem\n"), "opcode INST"
    yield "obj", state_dict(b"(" + ordered + b"o"), "opcode OBJ"
    yield "new object", state_dict(ordered + b")\x81"), "NEWOBJ"
    yield "new object with keywords", state_dict(ordered + b")}\x92"), "NEWOBJ_EX"
    yield "extension", state_dict(b"\x82\x01"), "opcode EXT1"
    yield "buffer", state_dict(b"\x97"), "opcode NEXT_BUFFER"
    yield "no opcode", state_dict(b"\xff"), "opcode ff"
    yield "payload, then garbage", state_dict(system + b"\xff\xff"), "'os.system'"
    yield "payload, then nothing", b"\x80\x02}" + system, "'os.system'"
    yield "payload after the tensors", state_dict(tensor() + b"s" + system), "'os.system'"
    yield "call of a storage", state_dict(call("torch", "FloatStorage")), "a call of FloatStorage"
    yield "call of a string", state_dict(text(command) + b")R"), "a call of str"
    yield "call without a tuple", state_dict(ordered + b"]R"), "not a tuple"
    yield "call with odd pairs", state_dict(ordered + b"]K\1a\x85R"), "list of pairs"
    yield "size of an int", state_dict(call("torch", "Size", b"K\1")), "torch.Size"
    yield "state of an ordered dict", state_dict(ordered + b")R" + attribute + b"b"), "BUILD"
    yield "state of a dict", state_dict(b"}" + attribute + b"b"), "BUILD"
    yield "state of a tensor", state_dict(tensor() + attribute + b"b"), "BUILD"
    yield "state of a global", state_dict(named("torch", "float32") + attribute + b"b"), "BUILD"
    yield "state of two values", state_dict(tensor() + b"NN\x86b"), "BUILD"
    yield "state of a list", state_dict(b"]NNN\x87b"), "a state for a list"
    yield "persistent id as text", state_dict(b"P0\n"), "opcode PERSID"
    yield "persistent id of an int", state_dict(b"K\1Q"), "not a storage"
    module = group(text("module"), ordered, text("a"), text("b"))
    yield "persistent id of a module", state_dict(module + b"Q"), "not a storage"
    odd = group(text("storage"), ordered, text("0"), text("cpu"), b"K\6") + b"Q"
    yield "persistent id of a dict", state_dict(odd), "not a storage"
    yield "marks too deep", pickled(b"(" * 10_000), "nested more than"
    yield "huge memo index", state_dict(b"Nr\xff\xff\xff\xff"), "memo index 4294967295"
    yield "unset memo index", state_dict(b"j\xff\xff\xff\xff"), "not set"
    yield "empty stack", pickled(b"R"), "empty stack"
    yield "empty stack under a mark", pickled(b"N(\x85"), "empty stack"
    yield "no mark", pickled(b"u"), "empty stack"
    yield "two values", pickled(b"NN"), "STOP"
    yield "mark left open", pickled(b"N(N"), "STOP"
    yield "too many steps", pickled(b"N" * 600_000), "steps"
    shape = integers(*[1] * 64) + b"q\0" + (tensor(None, None, b"h\0", b"h\0")) * 20_000
    yield "many tensors of many axes", pickled(shape), "steps"
    copies = b"](" + b"](K\1Ne" * 30_000 + b"e\x85q\0" + (ordered + b"h\0R") * 1000
    yield "copies of a large dict", pickled(copies), "steps"
    yield "string of 4 GB", state_dict(b"X\xff\xff\xff\xff"), "BINUNICODE"
    yield "integer of 2 GB", state_dict(b"\x8b\xff\xff\xff\x7f"), "opcode LONG4"
    yield "text not utf-8", state_dict(b"U\1\xff"), "SHORT_BINSTRING"
    yield "append to a dict", pickled(b"}Na"), "appends to a dict"
    yield "item of a list", pickled(b"]NNs"), "items of a list"
    yield "half an item", pickled(b"}(Nu"), "sets 1 items"
    yield "key that is a tuple", pickled(b"})Ns"), "dict key"
    yield "key of many bits", pickled(b"}" + integer(2**61 - 1 << 64) + b"Ns"), "dict key"
    yield "name that is an int", pickled(b"}K\1" + tensor() + b"s"), "entry 1"
    yield "value that is no tensor", state_dict(storage()), "entry 'w' is a Storage"
    yield "state dict that is a tensor", pickled(tensor()), "it holds a Tensor, not a state dict"

    yield "offset outside", state_dict(tensor(offset=integer(1))), "ends at 7"
    yield "offset far outside", state_dict(tensor(offset=integer(2**63))), "outside the storage"
    yield "offset negative", state_dict(tensor(offset=integer(-1))), "not a count"
    yield "offset a string", state_dict(tensor(offset=text("0"))), "not a count"
    yield "size outside", state_dict(tensor(size=integers(7))), "ends at 7"
    yield "size negative", state_dict(tensor(size=integers(-6))), "size has an entry"
    yield "size a list", state_dict(tensor(size=b"](K\6e")), "size is not a tuple"
    yield "size of a float", state_dict(tensor(size=group(b"G" + bytes(8)))), "size has an entry"
    wide = tensor(size=integers(2**62, 2**62), stride=integers(0, 0))
    yield "sizes that overflow", state_dict(wide), "overflows"
    none = tensor(size=integers(0, 2**62), stride=integers(1, 1))
    yield "sizes that overflow at zero", state_dict(none), "overflows"
    many = tensor(size=integers(*[1] * 65), stride=integers(*[1] * 65))
    yield "axes beyond number", state_dict(many), "at most 64"
    yield "stride outside", state_dict(tensor(stride=integers(2))), "ends at 11"
    yield "stride negative", state_dict(tensor(stride=integers(-1))), "stride has an entry"
    yield "stride far outside", state_dict(tensor(stride=integers(2**62))), "outside the storage"
    grown = tensor(size=integers(2**30), stride=integers(0))
    yield "stride zero", state_dict(grown), "bytes in a file of"
    yield "strides too few", state_dict(tensor(stride=b")")), "1 axes but 0 strides"
    yield "tensor without a storage", state_dict(tensor(b"N")), "needs a storage"
    yield "tensor with flags", state_dict(tensor(None, None, None, None, attribute)), "metadata"
    plain = call("torch._utils", "_rebuild_tensor", b"N")
    yield "tensor of one argument", state_dict(plain), "1 arguments"
    parameter = call("torch.nn.parameter", "Parameter", text("x"))
    yield "parameter of a string", state_dict(parameter), "not a tensor"
    yield "storage negative", state_dict(tensor(storage(count=-6))), "negative size"
    yield "storage too large", state_dict(tensor(storage(count=2**61))), "needs"
    yield "storage too small", state_dict(tensor(storage(count=5), size=integers(5))), "needs"
    twice = tensor() + text("x") + tensor(storage(kind="IntStorage"))
    yield "storage twice", pickled(b"}(" + text("w") + twice + b"u"), "described twice"
    view = group(text("v"), integer(3), integer(4))
    yield (
        "storage view outside",
        state_dict(tensor(storage("0", "FloatStorage", 6, view))),
        "from 3 on lie outside",
    )
    odd = storage("0", "FloatStorage", 6, text("v"))
    yield "storage view of no kind", state_dict(tensor(odd)), "invalid view"


def _values() -> Iterator[tuple[str, bytes, str]]:
    yield (
        "lists too deep",
        pickled(b"]" * 90_000 + b"a" * 89_999),
        "it holds a list, not a state dict",
    )
    yield "tuples too deep", pickled(b")" + b"\x85" * 90_000), "it holds a tuple, not a state dict"
    yield "list in itself", pickled(b"]q\0h\0a"), "it holds a list, not a state dict"
    yield "dict in itself", pickled(b"}q\0" + text("model") + b"h\0s"), "entry 'model'"
    yield "no stop", b"\x80\x02N", "without a STOP"
    yield (
        "storage absent",
        state_dict(tensor(storage("/etc/passwd"))),
        "'a/data//etc/passwd' is missing",
    )


def _archives() -> Iterator[tuple[str, bytes, str]]:
    good = state_dict(tensor())
    plain = archive(good)
    packed = archive(good, method=zipfile.ZIP_DEFLATED)
    entry, end = plain.index(b"PK\1\2"), plain.index(b"PK\5\6")

    yield "pickle after the stop", archive(good + good), "after the pickle's STOP"
    yield (
        "second pickle",
        archive(good, {"data/0": SIX_FLOATS, "more.pkl": good}),
        "no other pickle",
    )
    yield (
        "second root",
        archive(good, {"data/0": SIX_FLOATS, "b/data.pkl": good}),
        "no other pickle",
    )
    yield "no pickle", plain.replace(b"data.pkl", b"data.PKL"), "data.pkl"
    yield "huge pickle", archive(bytes(9 << 20), method=zipfile.ZIP_DEFLATED), "larger than"
    strange = {"data/0": SIX_FLOATS, "byteorder": b"middle"}
    yield "strange byte order", archive(good, strange), 'contains neither "little" nor "big"'
    bools = {"data/0": b"\0\1\2\3\4\5"}
    yield "bools of 5", archive(state_dict(tensor(storage(kind="BoolStorage"))), bools), "bools"

    double = archive(good, {"data/0": SIX_FLOATS, "data/1": SIX_FLOATS}).replace(
        b"data/1", b"data/0"
    )
    yield "duplicate name", double, "duplicate record 'a/data/0'"
    flag = {6: b"\1\0"}
    yield "encrypted", patched(plain, directory={8: b"\1\0"}, local=flag), "'a/data/0' has flags"
    yield "encrypted in the header only", patched(plain, directory={}, local=flag), "contradicts"
    yield "masked", patched(plain, directory={8: b"\0\x20"}, local={6: b"\0\x20"}), "flags 0x2000"
    bzip2 = archive(good, method=zipfile.ZIP_BZIP2)
    yield "bzip2", bzip2, "method 12"
    yield "other name in the header", patched(plain, directory={}, local={30: b"b"}), "contradicts"
    yield (
        "name not utf-8",
        patched(plain, directory={46: b"\xff"}, local={30: b"\xff"}),
        "not UTF-8",
    )
    yield (
        "stored with two sizes",
        patched(plain, directory={24: b"\x19"}, local={}),
        "two different sizes",
    )
    beyond = patched(plain, directory={20: b"\0\0\0\1" * 2}, local={})
    yield "record beyond the file", beyond, "overlaps"
    last = plain.rindex(b"PK\1\2") + 20
    size = struct.pack("<I", int.from_bytes(plain[last : last + 4], "little") + 1)
    into = plain[:last] + size + size + plain[last + 8 :]
    yield "record that reaches into the directory", into, "'a/data.pkl' overlaps"
    later = patched(plain, directory={42: struct.pack("<I", 2**31)}, local={})
    yield "header beyond the file", later, "no header of record 'a/data/0'"
    longer = patched(plain, directory={20: b"\x30\0\0\0" * 2}, local={})
    yield "overlapping records", longer, "overlaps"
    yield "wide size missing", patched(plain, directory={24: b"\xff" * 4}, local={}), "64-bit sizes"

    zeros = {"data/0": bytes(128 << 20)}
    need = state_dict(tensor(storage(count=32 << 20), size=integers(32 << 20)))
    bomb = archive(need, zeros, method=zipfile.ZIP_DEFLATED)
    yield "bomb", bomb, "deflated records of 134"
    small = struct.pack("<I", 24)
    lying = patched(bomb, directory={24: small}, local={22: small})
    lying = lying.replace(need, good)  # no effect on a deflated pickle: its need is caught first
    yield "bomb that lies", lying, "has 24 bytes"
    flat = archive(good, {"data/0": bytes(32 << 20)}, method=zipfile.ZIP_DEFLATED)
    flat = patched(flat, directory={24: small}, local={22: small})
    yield "bomb that lies well", flat, "beyond its declared size"
    yield "record larger than its storage", archive(good, {"data/0": bytes(28)}), "has 28 bytes"
    yield "checksum wrong", patched(packed, directory={16: b"\0\0\0\0"}, local={}), "is damaged"
    yield "deflate broken", patched(packed, directory={}, local={38: b"\xff\xff"}), "'a/data/0'"

    yield "comment", plain[:-2] + b"\1\0x", "end of central directory"
    yield "comment declared", plain[:-2] + b"\1\0", "comment"
    yield "two parts", plain[: end + 4] + b"\1" + plain[end + 5 :], "several parts"
    count = struct.pack("<2H", 60_000, 60_000)
    yield "count too large", plain[: end + 8] + count + plain[end + 12 :], "60000 records"
    count = struct.pack("<2H", 3, 3)
    yield "count one more", plain[: end + 8] + count + plain[end + 12 :], "directory"
    yield "gap", plain[:end] + b"gap" + plain[end:], "gap"
    yield "entry broken", plain[:entry] + b"PK\0\0" + plain[entry + 4 :], "directory entry"
    wide = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, end - entry, entry)
    wide += struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    yield "two directories", plain[:end] + wide + plain[end:], "contradict each other"


def _streams() -> Iterator[tuple[str, bytes, str]]:
    good, count = state_dict(tensor()), struct.pack("<q", 6)
    yield "plain pickle", good, "magic number"
    yield (
        "other magic number",
        legacy(good).replace(b"\x6c\xfc\x9c", b"\x6d\xfc\x9c"),
        "magic number",
    )
    version = legacy(good).replace(integer(1001), integer(1002))
    yield "other version", version, "a version other than"
    yield "keys too few", legacy(good, keys=()), "list of storages"
    yield "keys twice", legacy(good, keys=("0", "0")), "list of storages"
    yield "keys of others", legacy(good, keys=("1",)), "list of storages"
    yield "keys of no kind", legacy(good).replace(b"](" + text("0") + b"e", b"K\1"), "not a list"
    yield "count negative", legacy(good, struct.pack("<q", -6) + SIX_FLOATS), "the file declares -6"
    yield (
        "count huge",
        legacy(good, struct.pack("<q", 2**62) + SIX_FLOATS),
        "the file declares 4611",
    )
    yield "count missing", legacy(good, b""), "has 0 bytes left"
    yield "data cut short", legacy(good, count + SIX_FLOATS[:-1]), "has 23 bytes left"
    yield "data too long", legacy(good, count + SIX_FLOATS + good), "follow the last storage"


def _strangers() -> Iterator[tuple[str, bytes, str]]:
    yield "empty file", b"", "empty"
    yield "html", b"<html>404</html>", "not a checkpoint"
    yield "zip of nothing", b"PK\5\6" + bytes(18), "not a checkpoint"
