"""A network read from an ONNX file, as a callable pytree."""

import ast
import dataclasses
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_excite.data.images import check_images
from jax_excite.data.preprocessing import Preprocessing
from jax_excite.errors import ExciteError, InputError, NetworkError
from jax_excite.models.temperatures import read_temperatures
from jax_excite.onnx.operators import OPERATORS
from jax_excite.onnx.program import Input, Node, Program
from jax_excite.onnx.reading import read
from jax_excite.onnx.values import ChannelsLast, Value, is_known, logical

TEMPERATURES = "jax_excite.temperatures"  # their key in the metadata of an ONNX file
_LISTED = 8
_NAME_KEYS = ("names", "class_names", "classes", "labels")


@jax.tree_util.register_pytree_with_keys_class
class OnnxNetwork:
    """A network read from an ONNX file.

    It is a pytree whose leaves are the weights, by their names in the file. Its activations, pools
    and normalisations are named after the file's nodes in `sites`.

    Attributes:
        weights: the arrays of more than one float that the file holds, unless they have to be known
            when the network is traced.
        program: the graph.
        preprocessing: how images become the input, which is the first operation of a call; None if
            the network takes the file's own input.
        class_names: a name for each class; empty if they are not known.
    """

    def __init__(
        self,
        weights: Mapping[str, Any],
        program: Program,
        preprocessing: Preprocessing | None = None,
        class_names: tuple[str, ...] = (),
    ):
        self.weights = dict(weights)
        self.program = program
        self.preprocessing = preprocessing
        self.class_names = class_names

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the file, text by key."""
        return dict(self.program.metadata)

    @property
    def site_temperatures(self) -> dict[str, np.ndarray]:
        """The temperatures in the metadata of the file, for `Gating(site_temperatures=...)`.

        Raises:
            WeightsError: they are not numbers by site.
        """
        stored = read_temperatures(self.metadata.get(TEMPERATURES), "the ONNX file")
        return {site: np.asarray(value, np.float32) for site, value in stored}

    def __call__(self, x: Any) -> Any:
        """The outputs for a batch of items.

        Args:
            x: with `preprocessing`, images `[H, W, C]` or `[N, H, W, C]` in [-1, 1]. Without it,
                the input as the file describes it, often `[N, C, H, W]`; if there are several
                inputs, a dictionary of them by name. If the file is for a batch of one item, any
                number of items is computed one by one.

        Returns:
            The output; if there are several, a dictionary of them by name.

        Raises:
            InputError: an input is missing, or has not the rank or size that the file requires.
        """
        inputs = self.program.inputs
        if self.preprocessing is not None:
            check_images(x, bounds=None, channels=self.preprocessing.channels)
            if x.ndim == 3:
                return jax.tree.map(lambda part: part[0], self(x[None]))
            with jax.named_scope("preprocessing"):
                x = ChannelsLast(self.preprocessing.normalise(jnp.asarray(x)))
        given = dict(x) if isinstance(x, Mapping) else {inputs[0].name: x}
        given = {n: v if hasattr(v, "shape") else np.asarray(v) for n, v in given.items()}
        names = [info.name for info in inputs]
        if (len(names) != 1 and not isinstance(x, Mapping)) or given.keys() != set(names):
            raise InputError(
                f"x has the inputs {', '.join(given)}: the network takes {', '.join(names)}"
            )
        for info in inputs:
            _check_input(info, given[info.name])
        if not _is_for_one(inputs) or {value.shape[0] for value in given.values()} == {1}:
            return self._run(given)
        outputs = jax.vmap(lambda item: self._run(jax.tree.map(lambda part: part[None], item)))
        return jax.tree.map(lambda part: part[:, 0], outputs(given))

    def _run(self, given: Mapping[str, Any]) -> Any:
        # The user may have cast the weights.
        written = self.program.dtype
        dtype = next((weight.dtype for weight in self.weights.values()), written)

        def started(info: Input, value: Any) -> Any:
            if isinstance(value, ChannelsLast):
                return ChannelsLast(started(info, value.array))
            if is_known(value) and not jnp.issubdtype(value.dtype, jnp.floating):
                return value
            return jnp.asarray(value, dtype if info.dtype == written else info.dtype)

        values: dict[str, Value] = {
            name: constant.astype(dtype) if constant.dtype == written else constant
            for name, constant in self.program.constants.items()
        }
        values |= {info.name: started(info, given[info.name]) for info in self.program.inputs}
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

    def tree_flatten_with_keys(self) -> tuple[list[Any], Hashable]:
        """The weights with their names, and everything else."""
        leaves = [(jax.tree_util.DictKey(name), value) for name, value in self.weights.items()]
        names = tuple(self.weights)
        return leaves, (names, self.program, self.preprocessing, self.class_names)

    @classmethod
    def tree_unflatten(cls, static: Any, leaves: Sequence[Any]) -> "OnnxNetwork":
        """The inverse of `tree_flatten_with_keys`."""
        names, *rest = static
        return cls(dict(zip(names, leaves, strict=True)), *rest)


def is_onnx(name: str | os.PathLike[str]) -> bool:
    """Whether a name is that of an ONNX file, by its ending."""
    return Path(name).suffix.lower() == ".onnx"


def load_onnx(
    path: str | os.PathLike[str],
    *,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] = (),
) -> OnnxNetwork:
    """A network from an ONNX file, which every framework can write.

    Args:
        path: the file.
        preprocessing: how images in [-1, 1] become the input of the network; None for a network
            that takes the file's own input.
        class_names: a name for each class. If there are none, those in the metadata of the file,
            under `names`, `class_names`, `classes` or `labels`.

    Raises:
        FileNotFoundError: there is no file at the path.
        NetworkError: it is not an ONNX file, it is damaged, it has operators that are not supported
            (the message lists all of them), or it does not take images.
    """
    program = read(path)
    missing = [node for node in program.nodes if node.domain or node.op not in OPERATORS]
    if missing:
        kinds = sorted({".".join(filter(None, (node.domain, node.op))) for node in missing})
        listed = ", ".join(map(str, missing[:_LISTED]))
        rest = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        raise NetworkError(
            f"{path} has operators that are not supported, {', '.join(kinds)}: {listed}{rest}"
        )
    if preprocessing is not None:
        _check_images_fit(program, preprocessing, str(path))
    fixed = _needed_when_traced(program)
    weights = {
        name: jnp.asarray(constant)
        for name, constant in program.constants.items()
        if jnp.issubdtype(constant.dtype, jnp.floating) and constant.size > 1 and name not in fixed
    }
    others = {n: constant for n, constant in program.constants.items() if n not in weights}
    names = tuple(map(str, class_names)) or names_in(program.metadata)
    dtype = next((program.constants[name].dtype for name in weights), program.dtype)
    rest = dataclasses.replace(program, constants=others, dtype=dtype)
    return OnnxNetwork(weights, rest, preprocessing, names)


def names_in(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The names of classes in the metadata of a file: a list, a mapping from indices, or lines."""
    text = next((metadata[key] for key in _NAME_KEYS if key in metadata), "")
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return tuple(text.splitlines())
    if isinstance(found, dict):
        found = [found[key] for key in sorted(found)]
    return tuple(map(str, found)) if isinstance(found, (list, tuple)) else ()


def _check_images_fit(program: Program, preprocessing: Preprocessing, path: str) -> None:
    shapes = [info.shape for info in program.inputs]
    if len(shapes) != 1 or (shapes[0] is not None and len(shapes[0]) != 4):
        raise NetworkError(f"{path} takes {shapes}: preprocessing is for one input [N, C, H, W]")
    channels = shapes[0] and shapes[0][1]
    if channels not in (None, preprocessing.channels):
        raise NetworkError(
            f"{path} takes images of {channels} channels: the preprocessing has "
            f"{preprocessing.channels}"
        )


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
    try:
        with jax.named_scope(node.name):
            outputs = operator.evaluate(node, *inputs)
    except ExciteError:
        raise
    except Exception as error:  # of the many types that JAX and NumPy raise
        shapes = ", ".join("none" if v is None else str(v.shape) for v in inputs)
        raise NetworkError(f"{node} cannot be computed from {shapes}: {error}") from error
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return tuple(np.asarray(o) if isinstance(o, np.generic) else o for o in outputs)


def _check_input(info: Input, value: Any) -> None:
    if info.shape is None:
        return
    sizes = zip(value.shape[1:], info.shape[1:], strict=False)
    if value.ndim != len(info.shape) or any(n not in (None, own) for own, n in sizes):
        wanted = ", ".join("any" if n is None else str(n) for n in info.shape)
        raise InputError(
            f"the input {info.name!r} has shape {value.shape}: the network takes [{wanted}]"
        )


def _is_for_one(inputs: Sequence[Input]) -> bool:
    """Whether the file is for a batch of one item."""
    return all(info.shape and info.shape[0] == 1 for info in inputs)
