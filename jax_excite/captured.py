"""What Python functions capture, as leaves of pytrees: weights that are read anew at each call.

A compiled function takes arrays that a function captures for constants: it gives the old answer
after these have changed, and keeps them alive. So functions, methods and partials are opened:
what they capture becomes a pytree, from which an equal function is rebuilt inside of a trace.
"""

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
# NumPy arrays of integers, up to this size, are taken for indices and held static.
_LARGEST_INDEX = 1 << 16
_DEEPEST = 8
_NEVER_OPENED = (types.ModuleType, type, types.BuiltinFunctionType, str, int, float, complex)


class Static:
    """A value that is no array, as a part of the key of a compiled function."""

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
    """A callable, or an object, as a pytree of what it captures.

    Attributes:
        parts: what it captures.
        rebuild: makes it of parts; compared by `key`.
        key: what distinguishes it from others with the same parts.
    """

    def __init__(self, parts: list[Any], rebuild: Callable[[list[Any]], Any], key: Hashable):
        self.parts = parts
        self.rebuild = rebuild
        self.key = key

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        return self.closed([])(*args, **kwargs)

    def closed(self, used: list[Any]) -> Any:
        """The callable, or the object, with the parts as they are now, which go to `used`."""
        parts = [_closed(part, used) for part in self.parts]
        used += parts
        return self.rebuild(parts)

    def tree_flatten(self) -> tuple[list[Any], Any]:
        """The parts, and all else."""
        return self.parts, _Rebuild(self.rebuild, self.key)

    @classmethod
    def tree_unflatten(cls, static: "_Rebuild", parts: Any) -> "Opened":
        """The inverse of `tree_flatten`."""
        return cls(list(parts), static.rebuild, static.key)


class _Rebuild:
    """How an `Opened` is rebuilt; equal to another one by its key."""

    def __init__(self, rebuild: Callable[[list[Any]], Any], key: Hashable):
        self.rebuild = rebuild
        self.key = key

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Rebuild) and self.key == other.key


class _Kept:
    """A list, dict or set without arrays: the function gets the very same one."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Kept) and self.value is other.value


def _closed(part: Any, used: list[Any]) -> Any:
    def is_opened(node: Any) -> bool:
        return isinstance(node, Opened)

    def close(node: Any) -> Any:
        if isinstance(node, _Kept):
            return node.value
        return node.closed(used) if isinstance(node, Opened) else node

    return jax.tree.map(close, part, is_leaf=is_opened)


def call_watched(
    fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, dict[str, tuple[Any, Any]]]:
    """Call a function whose parts may be opened, and see which of its arrays that replaces.

    Returns:
        The outputs; and by name the arrays that the call has put in the place of others, as the
        methods of a module may do, each as a pair of the old one and the new one.
    """
    used: list[Any] = []
    closed = _closed(fn, used)
    watched = used or [closed]
    before = jax.tree_util.tree_flatten_with_path(watched)[0]
    outputs = closed(*args, **kwargs)
    after = jax.tree_util.tree_flatten_with_path(watched)[0]
    if len(after) != len(before):  # a module has stored something beside its weights
        return outputs, {}
    return outputs, {
        _name(path): (old, new)
        for (path, old), (_, new) in zip(before, after, strict=True)
        if new is not old and isinstance(old, jax.Array) and isinstance(new, jax.Array)
    }


def _name(path: Any) -> str:
    """The dotted name of a leaf, without its place among what is watched."""
    parts = jax.tree_util.keystr(path, simple=True, separator=".").split(".")
    named = itertools.dropwhile(str.isdecimal, parts)
    return ".".join(named).removesuffix(".value") or ".".join(parts)


def opened(fn: Any) -> Any:
    """`fn` with its functions opened, wherever they are among its leaves.

    Args:
        fn: a callable pytree, a function, a method, a partial, or an object that can be called.
    """
    return _open_tree(fn, ())


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
    if not isinstance(value, (jax.Array, np.ndarray)) and _is_own(type(value)):
        return _open_object(value, around)
    return value


def _open_partial(value: functools.partial[Any], around: tuple[int, ...]) -> Opened:
    names = tuple(value.keywords)
    parts = list(_open_tree((value.func, value.args, tuple(value.keywords.values())), around))

    def rebuild(parts: list[Any]) -> functools.partial[Any]:
        function, args, values = parts
        return functools.partial(function, *args, **dict(zip(names, values, strict=True)))

    return Opened(parts, rebuild, ("partial", names))


def _open_function(function: types.FunctionType, around: tuple[int, ...]) -> Any:
    """A function as what its closure, defaults and global names hold."""
    if function.__code__.co_filename.startswith(_INSTALLED) and not function.__closure__:
        return function
    code, scope, label = function.__code__, function.__globals__, function.__name__
    names = [name for name in dict.fromkeys(_names(code)) if _is_captured(scope.get(name))]
    cells = tuple(_content(cell) for cell in function.__closure__ or ())
    by_keyword = tuple((function.__kwdefaults__ or {}).values())
    keywords = tuple(function.__kwdefaults__ or {})
    parts = (cells, function.__defaults__ or (), by_keyword, tuple(scope[name] for name in names))
    parts = list(_open_tree(parts, around))

    def rebuild(parts: list[Any]) -> types.FunctionType:
        cells, defaults, by_keyword, by_name = parts
        own = {**scope, **dict(zip(names, by_name, strict=True))} if names else scope
        closure = tuple(map(types.CellType, cells))
        made = types.FunctionType(code, own, label, tuple(defaults), closure)
        made.__kwdefaults__ = dict(zip(keywords, by_keyword, strict=True)) or None
        return made

    return Opened(parts, rebuild, (code, id(scope), tuple(names), keywords))


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is not filled yet
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


def _is_own(kind: type) -> bool:
    """Whether a class is one of the caller's, plainly of Python, whose objects have attributes."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    own = kind.__module__ == "__main__" or (
        file is not None and not str(file).startswith(_INSTALLED)
    )
    return own and callable(kind) and not hasattr(kind, "__slots__")


def _open_object(value: Any, around: tuple[int, ...]) -> Any:
    if not hasattr(value, "__dict__"):
        return value
    kind = type(value)

    names = tuple(vars(value))

    def rebuild(parts: list[Any]) -> Any:
        made = object.__new__(kind)
        made.__dict__.update(zip(names, parts, strict=True))
        return made

    return Opened(list(_open_tree(tuple(vars(value).values()), around)), rebuild, (kind, names))


def _open_keras(model: Any) -> Opened:
    """A Keras model as its variables, whose values Keras changes in place."""
    known = weakref.ref(model)
    variables = [
        [v.value for v in model.trainable_variables],
        [v.value for v in model.non_trainable_variables],
    ]

    def rebuild(parts: list[Any]) -> Callable[..., Any]:
        model: Any = known()
        return lambda *args, **kwargs: model.stateless_call(*parts, *args, **kwargs)[0]

    return Opened(variables, rebuild, known)
