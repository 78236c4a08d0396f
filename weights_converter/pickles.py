"""A pickle machine for state dicts: it builds plain values, imports nothing and calls nothing.

The pickles of `torch.save` need few opcodes and few globals. This machine has a handler for each
of these opcodes and a table entry for each of these globals. Everything else is refused by name,
before its argument is read. Tensors and storages become descriptions, see `tensors`.
"""

import io
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from weights_converter.errors import CheckpointError
from weights_converter.globals import GLOBALS, PARAMETER, Global, checked_key
from weights_converter.tensors import Storage, Tensor

MAX_PICKLE_BYTES = 8 << 20
MAX_STEPS = 500_000  # opcodes, plus the lengths of the arguments of calls
MAX_MARKS = 64  # the depth of nesting


class Pickle(NamedTuple):
    """What a pickle holds."""

    value: object
    storages: dict[str, Storage]
    length: int
    """Bytes up to and with its STOP."""


def load_pickle(data: bytes, objects: Mapping[str, object] | None = None) -> Pickle:
    """Read one pickle from the start of `data`; bytes after its STOP are ignored.

    Args:
        data: the bytes, of which at most the first `MAX_PICKLE_BYTES` are read.
        objects: the objects that persistent ids stand for, where these ids are strings.

    Raises:
        CheckpointError: an opcode or global is not in the tables, a limit is exceeded, or the
            pickle is damaged. The message names the opcode and its place.
    """
    return _Machine(data[:MAX_PICKLE_BYTES], objects or {}).run()


class _Machine:
    def __init__(self, data: bytes, objects: Mapping[str, object]):
        self.stream = io.BytesIO(data)
        self.objects = objects
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each MARK
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.steps = 0

    def run(self) -> Pickle:
        while True:
            place = self.stream.tell()
            code = self.stream.read(1)
            if code == b"." and len(self.stack) == 1 and not self.below:
                return Pickle(self.stack[0], self.storages, self.stream.tell())
            if code not in _OPCODES:
                raise CheckpointError(f"{_name_of(code)} at byte {place} is refused")
            name, read, handle = _OPCODES[code]
            try:
                self.spend(1)
                handle(self, read(self.stream) if read else None)
            except IndexError:
                raise CheckpointError(f"opcode {name} at byte {place}: empty stack") from None
            except ValueError as error:  # raised by pickletools or by a handler
                raise CheckpointError(f"opcode {name} at byte {place}: {error}") from None

    def spend(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise CheckpointError(f"more than {MAX_STEPS} steps")

    def pop_to_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.below.pop()
        return items

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self, _: None) -> None:
        if len(self.below) == MAX_MARKS:
            raise CheckpointError(f"nested more than {MAX_MARKS} deep")
        self.below.append(self.stack)
        self.stack = []

    def close_tuple(self, _: None) -> None:
        items = tuple(self.pop_to_mark())
        self.push(items)

    def short_tuple(self, length: int) -> None:
        if len(self.stack) < length:
            raise IndexError
        items = tuple(self.stack[-length:])
        self.stack[-length:] = [items]

    def append(self, _: None) -> None:
        self.extend([self.stack.pop()])

    def appends(self, _: None) -> None:
        self.extend(self.pop_to_mark())

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise CheckpointError(f"appends to a {type(target).__name__}")
        target.extend(items)

    def set_item(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.update([key, value])

    def set_items(self, _: None) -> None:
        self.update(self.pop_to_mark())

    def update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise CheckpointError(f"sets {len(items)} items of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[checked_key(key)] = value

    def put(self, index: int) -> None:
        if index > MAX_STEPS:
            raise CheckpointError(f"memo index {index} is more than {MAX_STEPS}")
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise CheckpointError(f"memo index {index} is not set")
        self.push(self.memo[index])

    def stack_global(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise CheckpointError("a global's module and name must be strings")
        self.find_global((module, name))

    def find_global(self, name: tuple[str, str]) -> None:
        if name not in GLOBALS:
            raise CheckpointError(f"the global {'.'.join(name)!a:.200} is refused")
        self.push(GLOBALS[name])

    def reduce(self, _: None) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Global) or function.build is None:
            what = function.name if isinstance(function, Global) else type(function).__name__
            raise CheckpointError(f"a call of {what} is refused")
        if not isinstance(arguments, tuple):
            raise CheckpointError(f"{function.name} with arguments that are not a tuple")
        self.spend(len(arguments))
        self.spend(sum(len(item) for item in arguments if isinstance(item, list | tuple)))
        self.push(function.build(arguments))

    def new_object(self, _: None) -> None:
        if self.stack[-2:-1] != [PARAMETER]:
            raise CheckpointError("a new object of any class but Parameter is refused")
        self.reduce(None)

    def build(self, _: None) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        metadata = isinstance(target, OrderedDict) and isinstance(state, dict)
        if metadata and state.keys() == {"_metadata"}:
            return  # version numbers of modules, which are not needed to read the state dict
        if isinstance(target, Tensor) and isinstance(state, tuple) and len(state) == 3:
            return  # requires_grad, volatile and hooks of a Parameter, before PyTorch 0.4
        raise CheckpointError(f"a state for a {type(target).__name__} is refused")

    def persistent_id(self, _: None) -> None:
        match self.stack.pop():
            case str(key) if key in self.objects:
                return self.push(self.objects[key])
            case ("storage", Global(dtype=np.dtype() as dtype), str(key), str(), int(count)):
                view = None
            case ("storage", Global(dtype=np.dtype() as dtype), str(key), str(), int(count), view):
                pass
            case _:
                raise CheckpointError("a persistent id that is not a storage")
        if count < 0:
            raise CheckpointError(f"storage {key!a:.80} has a negative size")
        storage = Storage(key, dtype, count)
        if self.storages.setdefault(key, storage) != storage:
            raise CheckpointError(f"storage {key!a:.80} is described twice, in different ways")
        match view:
            case None:
                self.push(storage)
            case (str(), int(start), int(length)):
                self.push(storage.part(start, length))
            case _:
                raise CheckpointError(f"storage {key!a:.80} has an invalid view")


def _name_of(code: bytes) -> str:
    if not code:
        return "the end of the pickle without a STOP"
    names = {opcode.code: opcode.name for opcode in pickletools.opcodes}
    return f"opcode {names.get(code.decode('latin-1'), code.hex())}"


def read_global(stream: io.BytesIO) -> tuple[str, str]:
    """The module and name that follow a GLOBAL or INST opcode."""
    module, name = stream.readline(), stream.readline()
    if not name.endswith(b"\n"):
        raise CheckpointError("the name is cut short")
    return module[:-1].decode(), name[:-1].decode()


def _push(machine: _Machine, value: object) -> None:
    machine.push(value)


def _push_text(machine: _Machine, value: str) -> None:
    """Push a string of Python 2, which pickletools decodes as Latin-1."""
    machine.push(value.encode("latin-1").decode())


def _skip(machine: _Machine, _: int) -> None:
    pass


_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _skip,
    "FRAME": _skip,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "BININT": _push,
    "BININT1": _push,
    "BININT2": _push,
    "LONG1": _push,
    "BINFLOAT": _push,
    "BINUNICODE": _push,
    "SHORT_BINUNICODE": _push,
    "BINSTRING": _push_text,
    "SHORT_BINSTRING": _push_text,
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.short_tuple(1),
    "TUPLE2": lambda machine, _: machine.short_tuple(2),
    "TUPLE3": lambda machine, _: machine.short_tuple(3),
    "TUPLE": _Machine.close_tuple,
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "MARK": _Machine.mark,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": _Machine.find_global,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.new_object,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent_id,
}


def _reader_of(opcode: pickletools.OpcodeInfo) -> Callable[[io.BytesIO], Any] | None:
    if opcode.name == "GLOBAL":
        return read_global
    return opcode.arg.reader if opcode.arg else None


_OPCODES = {
    opcode.code.encode("latin-1"): (opcode.name, _reader_of(opcode), _HANDLERS[opcode.name])
    for opcode in pickletools.opcodes
    if opcode.name in _HANDLERS
}
