"""Networks that are built from a description, so that programs made of them can be kept on disk."""

from collections.abc import Callable
from typing import Any

import jax

_DESCRIPTIONS: dict[Any, str] = {}


def make_known(network: Callable[..., Any], description: str) -> None:
    """Record what networks of this structure compute.

    Args:
        network: a callable pytree whose leaves are all arrays.
        description: determines, with the source of this package, what a network of this structure
            computes from its leaves.
    """
    _DESCRIPTIONS[jax.tree.structure(network)] = description


def description_of(structure: Any) -> str | None:
    """The description of networks of a structure, or None if it is not known."""
    return _DESCRIPTIONS.get(structure)
