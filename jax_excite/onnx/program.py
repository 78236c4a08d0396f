"""An ONNX graph as plain data: nodes, constants, inputs and outputs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One node of an ONNX graph.

    Attributes:
        op: the operator's name, such as `Conv`.
        domain: its domain; empty for the operators of ONNX itself.
        version: the version of the domain's operator set.
        name: the name that the file gives it, or its operator and number.
        inputs: names of values; an empty name stands for an optional input that is absent.
        outputs: names of values, likewise.
        attributes: numbers, strings, lists and arrays by name.
    """

    op: str
    domain: str
    version: int
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or a default value."""
        return self.attributes.get(name, default)

    def ints(self, name: str, default: Any = None) -> Any:
        """An attribute that is a list of integers, as a tuple."""
        value = self.attributes.get(name)
        return default if value is None else tuple(int(v) for v in value)

    def __str__(self) -> str:
        return f"{self.op} {self.name!r}"


@dataclasses.dataclass(frozen=True)
class Input:
    """An input of a graph.

    Attributes:
        name: its name.
        dtype: its dtype.
        shape: its sizes; None for a size that is free. None if the rank is free.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int | None, ...] | None


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """An ONNX graph.

    Two programs are equal if they were read from equal files.

    Attributes:
        nodes: the nodes in the order in which they run.
        inputs: the inputs without defaults.
        outputs: the names of the outputs.
        constants: the arrays that the graph holds, by name, without the weights of a network.
        dtype: the dtype of its weights, or of its first float input if there are none.
        metadata: the file's metadata, text by key.
        digest: a hash of the file's content.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, np.ndarray]
    dtype: np.dtype
    metadata: Mapping[str, str]
    digest: str

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self.digest == other.digest
