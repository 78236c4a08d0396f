"""A network read from an ONNX file, as a callable pytree."""

import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_excite.errors import InputError, NetworkError
from jax_excite.onnx.operators import OPERATORS
from jax_excite.onnx.program import Input, Node, Program
from jax_excite.onnx.reading import read
from jax_excite.onnx.values import Value, is_known, logical

_LISTED = 8


@jax.tree_util.register_pytree_with_keys_class
class OnnxNetwork:
    """A network read from an ONNX file.

    It is a pytree whose leaves are the weights, by their names in the file. Its activations, pools
    and normalisations are named after the file's nodes in `sites`.

    Attributes:
        weights: the arrays of more than one float that the file holds, unless they have to be known
            when the network is traced.
        program: everything else.
    """

    def __init__(self, weights: Mapping[str, Any], program: Program):
        self.weights = dict(weights)
        self.program = program

    def __call__(self, x: Any) -> Any:
        """The outputs for a batch of items.

        Args:
            x: the input, in the order of axes that the file has; if there are several inputs, a
                dictionary of them by name. If the file has a batch of one item, any number of items
                is computed one by one.

        Returns:
            The output; if there are several, a dictionary of them by name.

        Raises:
            InputError: an input is missing, or has not the rank or size that the file says.
        """
        inputs = self.program.inputs
        given = dict(x) if isinstance(x, Mapping) else {inputs[0].name: x}
        if (len(inputs) != 1 and not isinstance(x, Mapping)) or given.keys() != set(_names(inputs)):
            wanted = ", ".join(_names(inputs))
            raise InputError(f"x has the inputs {', '.join(given)}: the network takes {wanted}")
        for info in inputs:
            _check_input(info, given[info.name])
        count = _items(inputs, given)
        if count is None:
            return self._run(given)
        return jax.vmap(lambda item: _without_items(self._run(_with_items(item))))(given)

    def _run(self, given: Mapping[str, Any]) -> Any:
        file_dtype, dtype = self._dtypes()

        def started(value: Any) -> Any:
            is_float = jnp.issubdtype(value.dtype, jnp.floating)
            if not is_float and is_known(value):
                return value
            return jnp.asarray(value, dtype if is_float else None)

        values: dict[str, Value] = {
            name: c.astype(dtype) if c.dtype == file_dtype else c
            for name, c in self.program.constants.items()
            if name not in self.weights
        }
        values |= {name: started(value) for name, value in given.items()}
        values |= self.weights
        last = {name: node for node in self.program.nodes for name in node.inputs}
        for node in self.program.nodes:
            outputs = _evaluate(node, [values[name] if name else None for name in node.inputs])
            values |= {n: o for n, o in zip(node.outputs, outputs, strict=False) if n}
            for name in node.inputs:
                if last.get(name) is node and name not in self.program.outputs:
                    values.pop(name, None)
        outputs = {name: jnp.asarray(logical(values[name])) for name in self.program.outputs}
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def _dtypes(self) -> tuple[Any, Any]:
        """The float dtype of the file, and that of the weights, to which a user may cast them."""
        for name, weight in self.weights.items():
            return self.program.constants[name].dtype, weight.dtype
        floats = (i.dtype for i in self.program.inputs if jnp.issubdtype(i.dtype, jnp.floating))
        own = next(floats, np.dtype(np.float32))
        return own, own

    def tree_flatten_with_keys(self) -> tuple[list[Any], Hashable]:
        """The weights with their names, and everything else."""
        leaves = [(jax.tree_util.DictKey(name), value) for name, value in self.weights.items()]
        return leaves, (tuple(self.weights), self.program)

    @classmethod
    def tree_unflatten(cls, static: Any, leaves: Sequence[Any]) -> "OnnxNetwork":
        """The inverse of `tree_flatten_with_keys`."""
        names, program = static
        return cls(dict(zip(names, leaves, strict=True)), program)


def load_onnx(path: str | os.PathLike[str]) -> OnnxNetwork:
    """A network from an ONNX file, of any framework.

    Raises:
        FileNotFoundError: there is no file at the path.
        NetworkError: it is no ONNX file, it is damaged, or it has operators that are not supported:
            the message lists all of them.
    """
    program = read(path)
    missing = [str(node) for node in program.nodes if node.domain or node.op not in OPERATORS]
    if missing:
        rest = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        kinds = sorted({node.op for node in program.nodes if node.op not in OPERATORS})
        raise NetworkError(
            f"{path} has operators that are not supported ({', '.join(kinds)}): "
            f"{', '.join(missing[:_LISTED])}{rest}"
        )
    fixed = _needed_when_traced(program)
    weights = {
        name: jnp.asarray(constant)
        for name, constant in program.constants.items()
        if jnp.issubdtype(constant.dtype, jnp.floating) and constant.size > 1 and name not in fixed
    }
    return OnnxNetwork(weights, program)


def _needed_when_traced(program: Program) -> set[str]:
    """The values that have to be known when the network is traced, and all they depend on."""
    needed: set[str] = set()
    for node in reversed(program.nodes):
        places = OPERATORS[node.op].known
        own = needed.intersection(node.outputs) and node.op not in ("Shape", "Size")
        needed |= {name for i, name in enumerate(node.inputs) if own or i in places}
    return needed


def _evaluate(node: Node, inputs: list[Value]) -> tuple[Value, ...]:
    operator = OPERATORS[node.op]
    if not operator.any_order:
        inputs = [logical(value) for value in inputs]
    with jax.named_scope(node.name):
        outputs = operator.evaluate(node, *inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return tuple(np.asarray(o) if isinstance(o, np.generic) else o for o in outputs)


def _names(inputs: Sequence[Input]) -> list[str]:
    return [info.name for info in inputs]


def _check_input(info: Input, value: Any) -> None:
    if info.shape is None:
        return
    shape = np.shape(value)
    sizes = zip(shape[1:], info.shape[1:], strict=False)
    if len(shape) != len(info.shape) or any(n not in (None, own) for own, n in sizes):
        wanted = ", ".join("any" if n is None else str(n) for n in info.shape)
        raise InputError(f"the input {info.name!r} has shape {shape}: the network takes [{wanted}]")


def _items(inputs: Sequence[Input], given: Mapping[str, Any]) -> int | None:
    """The number of items, if they have to be computed one by one; else None."""
    counts = {np.shape(given[info.name])[0] for info in inputs if info.shape}
    fixed = {info.shape[0] for info in inputs if info.shape}
    if fixed != {1} or counts == {1} or len(counts) != 1:
        return None
    return counts.pop()


def _with_items(item: Any) -> Any:
    return jax.tree.map(lambda part: part[None], item)


def _without_items(outputs: Any) -> Any:
    return jax.tree.map(lambda part: part[0], outputs)
