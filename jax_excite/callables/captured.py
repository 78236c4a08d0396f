"""The values that Python functions capture, as leaves of pytrees that are read at each call.

A compiled function treats the arrays that a function captures as constants: it returns the old
result after they have changed, and keeps them alive. Functions, methods and partials are therefore
opened: the values that they capture become a pytree, from which an equal function is rebuilt inside
a trace.
"""

import dis
import functools
import itertools
import sys
import sysconfig
import types
import weakref
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

_INSTALLED = tuple(str(Path(sysconfig.get_path(name))) for name in ("purelib", "platlib", "stdlib"))
# NumPy arrays of integers up to this size are treated as indices and held static.
_LARGEST_INDEX = 1 << 16
_DEEPEST = 8
_NEVER_OPENED = (types.ModuleType, type, types.BuiltinFunctionType, str, int, float, complex)


class Static:
    """A value that is not a traced array, as part of the key of a compiled function."""

    def __init__(self, value: Any):
        self.value = value

    def _key(self) -> Hashable:
        value = self.value
        if isinstance(value, np.ndarray):
            return (np.ndarray, value.shape, value.dtype.str, value.tobytes())
        try:
            hash(value)
        except TypeError:
            return (type(value), id(value))
        return (type(value), value)

    def __hash__(self) -> int:
        return hash(self._key())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self._key() == other._key()


def is_index(value: Any) -> bool:
    """Whether a value is a NumPy array that is held static."""
    is_array = isinstance(value, np.ndarray) and value.dtype.kind in "biu"
    return is_array and value.size <= _LARGEST_INDEX


@jax.tree_util.register_pytree_node_class
class Opened:
    """A callable as a pytree of the values that it captures.

    Attributes:
        parts: the values that it captures.
        rebuild: makes the callable from parts; compared by `key`.
        key: distinguishes it from other callables with the same parts.
    """

    def __init__(self, parts: list[Any], rebuild: Callable[[list[Any]], Any], key: Hashable):
        self.parts = parts
        self.rebuild = rebuild
        self.key = key

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the callable."""
        return self.closed([])(*args, **kwargs)

    def closed(self, used: list[Any]) -> Any:
        """The callable with the parts as they are now, which are also appended to `used`."""
        parts = [_closed(part, used) for part in self.parts]
        used += parts
        return self.rebuild(parts)

    def tree_flatten(self) -> tuple[list[Any], Any]:
        """The parts, and everything else."""
        return self.parts, _Rebuild(self.rebuild, self.key)

    @classmethod
    def tree_unflatten(cls, static: "_Rebuild", parts: Any) -> "Opened":
        """The inverse of `tree_flatten`."""
        return cls(list(parts), static.rebuild, static.key)


class _Rebuild:
    """The way an `Opened` is rebuilt; compared by its key."""

    def __init__(self, rebuild: Callable[[list[Any]], Any], key: Hashable):
        self.rebuild = rebuild
        self.key = key

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Rebuild) and self.key == other.key


class _Kept:
    """A list or dict without arrays, which the rebuilt function shares with the original.

    Dicts are also compared by content. Lists are not, because a list that serves as a record grows.
    """

    def __init__(self, value: Any):
        self.value = value
        self._content = repr(value) if isinstance(value, dict) else ""

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, _Kept) and self.value is other.value
        return same and self._content == other._content  # type: ignore[union-attr]


def _closed(part: Any, used: list[Any]) -> Any:
    def is_opened(node: Any) -> bool:
        return isinstance(node, Opened)

    def close(node: Any) -> Any:
        if isinstance(node, (_Kept, _Whole)):
            return node.value
        return node.closed(used) if isinstance(node, Opened) else node

    return jax.tree.map(close, part, is_leaf=is_opened)


def call_watched(
    fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, dict[str, tuple[Any, Any]]]:
    """Call a function whose parts may be opened, and find the arrays in it that the call replaces.

    Returns:
        The outputs; and, by name, the arrays that the call has replaced, as the methods of a
        module may do, each as a pair of the old and the new array.
    """
    used: list[Any] = []
    closed = _closed(fn, used)
    watched = used or [closed]
    before = jax.tree_util.tree_flatten_with_path(watched)[0]
    outputs = closed(*args, **kwargs)
    after = jax.tree_util.tree_flatten_with_path(watched)[0]
    if len(after) != len(before):  # a module has stored something besides its weights
        return outputs, {}
    return outputs, {
        _name(path): (old, new)
        for (path, old), (_, new) in zip(before, after, strict=True)
        if new is not old and isinstance(old, jax.Array) and isinstance(new, jax.Array)
    }


def _name(path: Any) -> str:
    """The dotted name of a leaf, without its index among the watched values."""
    parts = jax.tree_util.keystr(path, simple=True, separator=".").split(".")
    named = itertools.dropwhile(str.isdecimal, parts)
    return ".".join(named).removesuffix(".value") or ".".join(parts)


def opened(fn: Any) -> Any:
    """`fn` with its functions opened, wherever they are among its leaves.

    Args:
        fn: a callable pytree, a function, a method, a partial, or a callable object.
    """
    try:
        found = _open_tree(fn, ())
    except _NeedsWholeError:
        found = _Whole(fn)
    return Opened([found], lambda parts: parts[0], "whole") if isinstance(found, _Whole) else found


class _NeedsWholeError(Exception):
    """A function assigns to a variable that it captures, so a copy would behave differently."""


def _open_tree(tree: Any, around: tuple[int, ...]) -> Any:
    def is_whole(node: Any) -> bool:
        return isinstance(node, functools.partial) or _is_record(node)

    return jax.tree.map(lambda leaf: _open(leaf, around), tree, is_leaf=is_whole)


def _is_record(node: Any) -> bool:
    """Whether a value is a list or dict of plain values, in which a function may keep a record."""
    if not isinstance(node, (list, dict)):
        return False
    plain = (str, int, float, complex, type(None))
    return all(isinstance(leaf, plain) for leaf in jax.tree.leaves(node))


def _open(value: Any, around: tuple[int, ...]) -> Any:
    """An `Opened` of a value that can be opened, else the value."""
    if id(value) in around and isinstance(value, types.FunctionType):
        raise _NeedsWholeError  # it refers to itself
    if id(value) in around or len(around) > _DEEPEST or isinstance(value, _NEVER_OPENED):
        return value
    if isinstance(value, (list, dict)):
        return _Kept(value)
    around = (*around, id(value))
    if isinstance(value, functools.partial):
        return _open_partial(value, around)
    if isinstance(value, types.MethodType):
        parts = _open_tree((value.__func__, value.__self__), around)
        return Opened(list(parts), lambda parts: types.MethodType(*parts), "method")
    if isinstance(value, types.FunctionType):
        return _open_function(value, around)
    if hasattr(type(value), "stateless_call"):
        return _open_keras(value)
    is_leaf = not isinstance(value, (jax.Array, np.ndarray)) and jax.tree_util.all_leaves([value])
    return _Whole(value) if is_leaf and _is_own(type(value)) else value


def _open_partial(value: functools.partial[Any], around: tuple[int, ...]) -> Opened:
    names = tuple(value.keywords)
    parts = list(_open_tree((value.func, value.args, tuple(value.keywords.values())), around))

    def rebuild(parts: list[Any]) -> functools.partial[Any]:
        function, args, values = parts
        return functools.partial(function, *args, **dict(zip(names, values, strict=True)))

    return Opened(parts, rebuild, ("partial", names))


def _open_function(function: types.FunctionType, around: tuple[int, ...]) -> Any:
    """A function as the values of its closure, defaults, attributes and global names."""
    if function.__code__.co_filename.startswith(_INSTALLED) and not function.__closure__:
        return function
    code, scope, label = function.__code__, function.__globals__, function.__name__
    if _writes(code):
        raise _NeedsWholeError
    names = _captured_names(function)
    keywords, labels = tuple(function.__kwdefaults__ or {}), tuple(vars(function))
    parts = list(_open_tree(_captures(function), around))

    def rebuild(parts: list[Any]) -> types.FunctionType:
        cells, defaults, by_keyword, attributes, by_name = parts
        own = {**scope, **dict(zip(names, by_name, strict=True))} if names else scope
        closure = tuple(map(types.CellType, cells))
        made = types.FunctionType(code, own, label, tuple(defaults), closure)
        made.__kwdefaults__ = dict(zip(keywords, by_keyword, strict=True)) or None
        made.__dict__.update(zip(labels, attributes, strict=True))
        return made

    return Opened(parts, rebuild, (code, id(scope), names, keywords, labels))


def _captures(function: types.FunctionType) -> tuple[tuple[Any, ...], ...]:
    """The values captured by a function's closure, defaults, keywords, attributes and globals."""
    return (
        tuple(_content(cell) for cell in function.__closure__ or ()),
        function.__defaults__ or (),
        tuple((function.__kwdefaults__ or {}).values()),
        tuple(vars(function).values()),
        tuple(function.__globals__[name] for name in _captured_names(function)),
    )


def _captured_names(function: types.FunctionType) -> tuple[str, ...]:
    names = dict.fromkeys(_names(function.__code__))
    return tuple(name for name in names if _is_captured(function.__globals__.get(name)))


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the cell is not filled yet
        return None


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _is_captured(value: Any) -> bool:
    """Whether the value of a global name can change what a function computes."""
    if value is None or isinstance(value, (types.ModuleType, type, types.BuiltinFunctionType)):
        return False
    if isinstance(value, types.FunctionType):
        return not value.__code__.co_filename.startswith(_INSTALLED)
    return True


@functools.lru_cache(maxsize=4096)
def _writes(code: types.CodeType) -> bool:
    """Whether a function, or one nested in it, assigns to a variable that it captures."""
    for one in dis.get_instructions(code):
        if one.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            return True
        if one.opname in ("STORE_DEREF", "DELETE_DEREF") and one.argval in code.co_freevars:
            return True
    return any(_writes(c) for c in code.co_consts if isinstance(c, types.CodeType))


def _is_own(kind: type) -> bool:
    """Whether a class is the caller's own or a namespace, so that its objects may hold anything."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    own = file is not None and not str(file).startswith(_INSTALLED)
    return own or kind.__module__ == "__main__" or issubclass(kind, types.SimpleNamespace)


class _Whole:
    """A callable or an object that is used as it is, because a copy would behave differently.

    Two of them are equal if they are of the same object and hold the same arrays and numbers. A
    change of these therefore triggers recompilation, and the result is up to date.
    """

    def __init__(self, value: Any):
        self.value = value
        self._held = tuple(_held(value, set(), 0))

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Whole)
            and self.value is other.value
            and len(self._held) == len(other._held)
            and all(map(_is_same, self._held, other._held))
        )


def _is_same(a: Any, b: Any) -> bool:
    if isinstance(a, weakref.ref) and isinstance(b, weakref.ref):
        return a() is b() and a() is not None
    return type(a) is type(b) and a == b


def _held(value: Any, seen: set[int], depth: int) -> Iterator[Any]:
    """References to the arrays, and the numbers, that can be found in a value."""
    if isinstance(value, jax.Array):
        yield weakref.ref(value)
    elif isinstance(value, np.ndarray):
        yield (value.shape, value.dtype.str, hash(value.tobytes()))
    elif isinstance(value, (bool, int, float, complex, str)):
        yield value
    elif id(value) not in seen and depth <= _DEEPEST:
        seen.add(id(value))
        for part in _within(value):
            yield from _held(part, seen, depth + 1)


def _within(value: Any) -> Iterator[Any]:
    """The parts that a value holds directly."""
    if isinstance(value, types.FunctionType):
        if not value.__code__.co_filename.startswith(_INSTALLED):
            yield from itertools.chain.from_iterable(_captures(value))
    elif isinstance(value, types.MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, (list, tuple)):
        yield from () if _is_record(value) else value
    elif isinstance(value, type):
        if _is_own(value):
            kept = (n for n in vars(value) if not n.startswith("__") or n == "__call__")
            yield from (vars(value)[name] for name in kept)
    elif not jax.tree_util.all_leaves([value]):
        yield from jax.tree.leaves(value)
    elif _is_own(type(value)):
        yield from getattr(value, "__dict__", {}).values()
        for kind in type(value).__mro__:
            names = getattr(kind, "__slots__", ())
            yield from (
                getattr(value, n, None) for n in ((names,) if isinstance(names, str) else names)
            )
            yield kind


def _open_keras(model: Any) -> Opened:
    """A Keras model as the pytree of its variables, whose values Keras changes in place."""
    known = weakref.ref(model)
    variables = [
        [v.value for v in model.trainable_variables],
        [v.value for v in model.non_trainable_variables],
    ]

    def rebuild(parts: list[Any]) -> Callable[..., Any]:
        model: Any = known()
        return lambda *args, **kwargs: model.stateless_call(*parts, *args, **kwargs)[0]

    return Opened(variables, rebuild, known)
