"""Reading ONNX files. A file is data: nothing of it is run, and sizes are checked before use."""

import contextlib
import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jax_excite.errors import NetworkError
from jax_excite.onnx.program import Input, Node, Program

# The largest file that the format allows: tensors of larger networks are in files beside it.
_LARGEST_FILE = 2**31 - 1
_MOST_DIMENSIONS = 16


def read(path: str | os.PathLike[str]) -> Program:
    """Read an ONNX file.

    Tensors that are stored outside of the file are read from its own folder only.

    Raises:
        FileNotFoundError: there is no file at the path.
        NetworkError: the package `onnx` is not installed, or the file is not an ONNX file, is
            damaged, or holds what is not supported.
    """
    onnx = import_onnx()
    path = Path(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > _LARGEST_FILE:
            raise NetworkError(f"{path} has {size} bytes: an ONNX file has less than 2 GiB")
        content = file.read()
    with malformed(path):
        model = onnx.load_model_from_string(content)
        if not model.HasField("graph") or not model.graph.node:
            raise NetworkError(f"{path} is not an ONNX file: it has no graph with nodes")
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        return _Reader(onnx, path, model).program(hashlib.sha256(content).hexdigest())


def import_onnx() -> Any:
    """The package `onnx`; raises `NetworkError` if it is not installed."""
    try:
        import onnx
        import onnx.inliner
        import onnx.numpy_helper
    except ImportError as error:
        raise NetworkError(
            'ONNX files are read with the package onnx: pip install "jax-excite[onnx]"'
        ) from error
    return onnx


@contextlib.contextmanager
def malformed(path: Path) -> Iterator[None]:
    """A context in which `path` is read: whatever fails becomes one `NetworkError`."""
    try:
        yield
    except NetworkError:
        raise
    # The parser and the conversion of tensors raise a dozen types of errors on damaged files.
    except Exception as error:
        raise NetworkError(f"{path} cannot be read as an ONNX file: {error}") from error


class _Reader:
    def __init__(self, onnx: Any, path: Path, model: Any):
        self._onnx = onnx
        self._path = path
        self._model = model
        self._versions = {o.domain: int(o.version) for o in model.opset_import}
        self._constants: dict[str, np.ndarray] = {}

    def program(self, digest: str) -> Program:
        graph = self._model.graph
        if graph.sparse_initializer:
            raise NetworkError(f"{self._path} has sparse tensors, which are not supported")
        for tensor in graph.initializer:
            self._constants[_text(tensor.name)] = self._array(tensor)
        inputs = tuple(
            self._input(info) for info in graph.input if info.name not in self._constants
        )
        nodes = self._nodes(graph.node, {info.name for info in inputs})
        metadata = {_text(e.key): _text(e.value) for e in self._model.metadata_props}
        outputs = tuple(info.name for info in graph.output)
        floats = (i.dtype for i in inputs if jnp.issubdtype(i.dtype, jnp.floating))
        dtype = next(floats, np.dtype(np.float32))
        return Program(nodes, inputs, outputs, self._constants, dtype, metadata, digest)

    def _nodes(self, protos: Iterable[Any], known: set[str]) -> tuple[Node, ...]:
        known = known | self._constants.keys() | {""}
        nodes = []
        for number, proto in enumerate(protos):
            domain, op = _text(proto.domain), _text(proto.op_type)
            domain = "" if domain == "ai.onnx" else domain
            node = Node(
                op,
                domain,
                self._versions.get(proto.domain, self._versions.get(domain, 1)),
                (_text(proto.name) or f"{op}_{number}").strip("/"),
                tuple(map(_text, proto.input)),
                tuple(map(_text, proto.output)),
                {_text(a.name): self._attribute(a) for a in proto.attribute},
            )
            if missing := [value for value in node.inputs if value not in known]:
                raise NetworkError(
                    f"{self._path}: {node} takes {missing[0]!r}, which no earlier node computes"
                )
            known.update(node.outputs)
            if node.op == "Constant" and not domain:
                self._constants[node.outputs[0]] = self._constant(node)
            else:
                nodes.append(node)
        absent = [info.name for info in self._model.graph.output if info.name not in known]
        if absent:
            raise NetworkError(f"{self._path}: no node computes the output {absent[0]!r}")
        return tuple(nodes)

    def _constant(self, node: Node) -> np.ndarray:
        for name, dtype in (("float", np.float32), ("int", np.int64)):
            for plural in ("", "s"):
                if (value := node.get(f"value_{name}{plural}")) is not None:
                    return np.asarray(value, dtype)
        value = node.get("value")
        if not isinstance(value, np.ndarray):
            raise NetworkError(f"{self._path}: {node} holds no array")
        return value

    def _attribute(self, proto: Any) -> Any:
        value = self._onnx.helper.get_attribute_value(proto)
        if isinstance(value, bytes):
            return value.decode()
        if isinstance(value, self._onnx.TensorProto):
            return self._array(value)
        if isinstance(value, (int, float)):
            return value
        return (
            [v.decode() if isinstance(v, bytes) else v for v in value] if _is_list(value) else value
        )

    def _array(self, tensor: Any) -> np.ndarray:
        """A tensor as an array; its size is compared with its data before memory is taken."""
        onnx = self._onnx
        shape = tuple(tensor.dims)
        if len(shape) > _MOST_DIMENSIONS or min(shape, default=0) < 0:
            raise NetworkError(f"{self._path}: {tensor.name!r} has the shape {shape}")
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            return self._outside(tensor, shape)
        if tensor.HasField("raw_data"):
            bits = _bits(onnx, tensor.data_type)
            if len(tensor.raw_data) != math.ceil(math.prod(shape) * bits / 8):
                raise NetworkError(
                    f"{self._path}: {tensor.name!r} has the shape {shape} of {bits} bits each, but "
                    f"{len(tensor.raw_data)} bytes of data"
                )
        return onnx.numpy_helper.to_array(tensor)

    def _outside(self, tensor: Any, shape: tuple[int, ...]) -> np.ndarray:
        """A tensor that is stored in another file of the same folder."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        folder = self._path.parent.resolve()
        file = (folder / entries.get("location", "")).resolve()
        what = f"{self._path}: {tensor.name!r} is stored in {entries.get('location')!r}"
        if not file.is_relative_to(folder):
            raise NetworkError(f"{what}, which is outside of the folder of the network")
        if not file.is_file():
            raise NetworkError(f"{what}, which is missing: put it beside {self._path.name}")
        bits = _bits(self._onnx, tensor.data_type)
        length = math.ceil(math.prod(shape) * bits / 8)
        offset = int(entries.get("offset", 0))
        if offset < 0 or int(entries.get("length", length)) != length:
            raise NetworkError(f"{what} with a length that does not fit the shape {shape}")
        if file.stat().st_size < offset + length:
            raise NetworkError(f"{what}, which is too short")
        with file.open("rb") as opened:
            opened.seek(offset)
            raw = opened.read(length)
        inside = self._onnx.TensorProto(data_type=tensor.data_type, dims=shape, raw_data=raw)
        return self._onnx.numpy_helper.to_array(inside)

    def _input(self, info: Any) -> Input:
        if not info.type.HasField("tensor_type"):
            raise NetworkError(f"{self._path}: the input {info.name!r} is not a tensor")
        kind = info.type.tensor_type
        dtype = self._onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if not kind.HasField("shape"):
            return Input(_text(info.name), dtype, None)
        sizes = (d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
        return Input(
            _text(info.name), dtype, tuple(s if s is None or s > 0 else None for s in sizes)
        )


def _is_list(value: Any) -> bool:
    return hasattr(value, "__iter__") and not hasattr(value, "DESCRIPTOR")


def _text(value: Any) -> str:
    """A text of the file, which the parser leaves as bytes if it is not UTF-8."""
    if not isinstance(value, str):
        raise NetworkError(f"the file holds a text that is not UTF-8: {value!r}")
    return value


def _bits(onnx: Any, data_type: int) -> int:
    """The bits that an entry takes in a file."""
    four = ("UINT4", "INT4", "FLOAT4E2M1")
    if onnx.TensorProto.DataType.Name(data_type) in four:
        return 4
    if onnx.TensorProto.DataType.Name(data_type) in ("UINT2", "INT2"):
        return 2
    return 8 * onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize
