"""Networks that are built from a description, and what is kept of them on disk.

What such a network computes is known without tracing it, so what tracing gives can be kept between
processes. It is kept beside the programs that JAX compiles, in the folder of its setting
`jax_compilation_cache_dir`; without that folder, nothing is.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from jax_excite.callables.pytree import Flattened
from jax_excite.replacing import replacing

_DESCRIPTIONS: dict[Any, str] = {}
_PACKAGE = Path(__file__).parents[1]
_LIBRARIES = "jax", "jaxlib", "flax", "numpy"
_FOLDER_SETTING = "jax_compilation_cache_dir"
_DIGEST_BYTES = hashlib.sha256().digest_size


def make_known(network: Callable[..., Any], description: str) -> None:
    """Record what networks of this structure compute.

    Args:
        network: a callable pytree whose leaves are all arrays.
        description: determines, with the source of this package, what a network of this structure
            computes from its leaves.
    """
    _DESCRIPTIONS[jax.tree.structure(network)] = description


def is_known(network: Any) -> bool:
    """Whether it is known what a network computes, and there is a folder to keep things in."""
    if not _setting(_FOLDER_SETTING) or not _setting("jax_enable_compilation_cache"):
        return False
    if _setting("jax_disable_jit") or _setting("jax_default_device") is not None:
        return False
    if not jax.sharding.get_abstract_mesh().empty:
        return False
    return isinstance(network, Flattened) and network.tree in _DESCRIPTIONS


def place_of(
    what: str, network: Flattened, others: Any, fixed: Mapping[str, Any] | None = None
) -> Path | None:
    """The file of what is computed of a known network, or None if it cannot be described.

    Args:
        what: what is computed.
        network: the network, with abstract or concrete arrays as leaves.
        others: a pytree of all other arrays that are needed, of which the shapes matter.
        fixed: all other values that are needed.
    """
    parts = {
        "what": what,
        "network": _DESCRIPTIONS[network.tree],
        "fixed": sorted(
            (name, type(value).__module__, repr(value)) for name, value in (fixed or {}).items()
        ),
        "structure": str(jax.tree.structure(others)),
        "arrays": [
            (leaf.shape, str(leaf.dtype), getattr(leaf, "weak_type", False))
            for leaf in jax.tree.leaves((network, others))
        ],
        "backend": jax.default_backend(),
        "settings": _settings(),
        "source": _digest_of_source(),
        "versions": [importlib.metadata.version(name) for name in _LIBRARIES],
    }
    text = json.dumps(parts)
    if " at 0x" in text:  # an object that prints its address does not say what it computes
        return None
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Path(_setting(_FOLDER_SETTING), f"jax_excite-{what.rpartition('.')[2]}-{digest}")


def read(place: Path | None) -> bytes | None:
    """What was written there, or None if there is nothing, or only a part of it."""
    if place is None:
        return None
    try:
        whole = place.read_bytes()
    except OSError:
        return None
    digest, content = whole[:_DIGEST_BYTES], whole[_DIGEST_BYTES:]
    return content if hashlib.sha256(content).digest() == digest else None


def write(place: Path | None, content: bytes | bytearray) -> None:
    """Write a file, which is then complete or absent; it is absent where it cannot be written."""
    if place is None:
        return
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place) as partial:
            partial.write_bytes(hashlib.sha256(content).digest() + content)


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
