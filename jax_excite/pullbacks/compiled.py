"""Compiled functions of a network, whose traced programs are kept on disk.

JAX keeps compiled programs in the folder of the setting `jax_compilation_cache_dir`. It finds one
only after it has traced and lowered the function, which takes seconds for a network. This module
keeps what tracing and lowering give, in the same folder, for networks that `load` has built: what
they compute is known without tracing them. Without that folder, nothing is kept.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax import export
from jax.core import Tracer
from jax.sharding import SingleDeviceSharding

from jax_excite.callables.known import description_of
from jax_excite.callables.pytree import Flattened

_PACKAGE = Path(__file__).parents[1]
_LIBRARIES = "jax", "jaxlib", "flax", "numpy"
_FOLDER_SETTING = "jax_compilation_cache_dir"
_PREFIX = "jax_excite-"
_DIGEST_BYTES = hashlib.sha256().digest_size


class Compiled:
    """A function of a network and of arrays, compiled by `jax.jit`.

    Attributes:
        lower: that of the function compiled by `jax.jit`.
    """

    def __init__(self, function: Callable[..., Any], static_argnames: tuple[str, ...]):
        functools.update_wrapper(self, function)
        kept = functools.partial(_from_disk, function, static_argnames)
        self._plain = jax.jit(function, static_argnames=static_argnames)
        self._kept = jax.jit(kept, static_argnames=static_argnames)
        self.lower = self._plain.lower

    def __call__(self, params: Any, *args: Any, **settings: Any) -> Any:
        """Call the function."""
        can_keep = _can_keep(params, (args, settings))
        return (self._kept if can_keep else self._plain)(params, *args, **settings)


def compiled(*static_argnames: str) -> Callable[[Callable[..., Any]], Compiled]:
    """Decorate a function whose first argument is a network; as `jax.jit` with `static_argnames`.

    The static arguments have to be passed by name.
    """
    return lambda function: Compiled(function, static_argnames)


def _can_keep(params: Any, others: Any) -> bool:
    """Whether the program of a call is known before it is traced, and there is a folder for it."""
    if not _setting(_FOLDER_SETTING) or not _setting("jax_enable_compilation_cache"):
        return False
    if _setting("jax_disable_jit") or _setting("jax_default_device") is not None:
        return False
    if not jax.sharding.get_abstract_mesh().empty:
        return False
    if not isinstance(params, Flattened) or description_of(params.tree) is None:
        return False
    return all(map(_is_on_default_device, (*params.leaves, *jax.tree.leaves(others))))


def _is_on_default_device(leaf: Any) -> bool:
    """Whether a leaf can be an argument of a program for the one device that JAX uses if not told.

    Leaves that are no arrays of JAX are moved there by the call.
    """
    if isinstance(leaf, Tracer):
        return False
    if not isinstance(leaf, jax.Array):
        return True
    place = leaf.sharding
    return isinstance(place, SingleDeviceSharding) and place.device_set == _default_devices()


@functools.cache
def _default_devices() -> set[Any]:
    return {jax.local_devices()[0]}


def _from_disk(
    function: Callable[..., Any], static_argnames: tuple[str, ...], *args: Any, **settings: Any
) -> Any:
    """`function(*args, **settings)` by the program on disk, which is made if there is none."""
    fixed = {name: settings.pop(name) for name in static_argnames if name in settings}
    leaves, tree = jax.tree.flatten((args, settings))
    description = _describe(function, fixed, args, settings)
    if description is None:
        return function(*args, **settings, **fixed)
    digest = hashlib.sha256(description.encode()).hexdigest()
    path = Path(_setting(_FOLDER_SETTING), f"{_PREFIX}{digest}")
    program = _read(path)
    if program is None:

        def flat(*leaves: Any) -> Any:
            args, settings = tree.unflatten(leaves)
            return function(*args, **settings, **fixed)

        shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
        program = export.export(jax.jit(flat))(*shapes)
        _write(path, program.serialize())
    return program.call(*leaves)


def _describe(
    function: Callable[..., Any],
    fixed: dict[str, Any],
    args: tuple[Any, ...],
    settings: dict[str, Any],
) -> str | None:
    """All that the program depends on, or None if that cannot be written down."""
    network, *others = args
    parts = {
        "network": description_of(network.tree),
        "function": f"{function.__module__}.{function.__qualname__}",
        "fixed": sorted(
            (name, type(value).__module__, repr(value)) for name, value in fixed.items()
        ),
        "structure": str(jax.tree.structure((others, settings))),
        "leaves": [str(leaf.aval) for leaf in jax.tree.leaves((args, settings))],
        "backend": jax.default_backend(),
        "settings": _settings(),
        "source": _digest_of_source(),
        "versions": [importlib.metadata.version(name) for name in _LIBRARIES],
    }
    text = json.dumps(parts)
    # An object that prints its address, such as a function, says nothing of what it computes.
    return None if " at 0x" in text else text


def _settings() -> list[tuple[str, str]]:
    """The settings of JAX, any of which may change what is traced."""
    names = sorted(jax.config.values)
    return [(name, repr(_setting(name))) for name in names if name != _FOLDER_SETTING]


def _setting(name: str) -> Any:
    """A setting of JAX as it is here; context managers change some of them."""
    return getattr(jax.config, name, jax.config.values[name])


@functools.cache
def _digest_of_source() -> str:
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(_PACKAGE)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _read(path: Path) -> export.Exported | None:
    """The program in a file, or None if there is none, or only a part of one."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, program = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    return (
        export.deserialize(bytearray(program))
        if hashlib.sha256(program).digest() == digest
        else None
    )


def _write(path: Path, program: bytearray) -> None:
    """Write a program; the file is complete or absent. A folder that cannot be written is left."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(hashlib.sha256(program).digest() + program)
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
