"""The globals that the pickle of a state dict may mention, and how each is handled.

None of them is imported: a call of a global runs the function given here, or is refused.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from weights_converter.errors import CheckpointError
from weights_converter.tensors import STORAGE_DTYPES, Tensor, describe_tensor

_DTYPES = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool"


@dataclass(frozen=True, slots=True)
class Global:
    """A name that pickles may mention, and how it may be used."""

    name: str
    build: Callable[[tuple[Any, ...]], object] | None = None
    dtype: np.dtype | None = None


def checked_key(key: object) -> str | int:
    """A key whose hash is cheap and cannot be chosen to collide."""
    if isinstance(key, str) or (isinstance(key, int) and -(2**63) <= key < 2**63):
        return key
    raise CheckpointError(f"a dict key that is a {type(key).__name__}, not a name or a small int")


def _ordered_dict(arguments: tuple[Any, ...]) -> OrderedDict[str | int, Any]:
    match arguments:
        case ():
            return OrderedDict()
        case (list(pairs),) if all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            return OrderedDict((checked_key(key), value) for key, value in pairs)  # Python 2
    raise CheckpointError("OrderedDict with arguments other than a list of pairs")


def _rebuild_tensor(arguments: tuple[Any, ...]) -> Tensor:
    match arguments:
        case (storage, offset, shape, strides):
            return describe_tensor(storage, offset, shape, strides)
    raise CheckpointError(f"_rebuild_tensor with {len(arguments)} arguments")


def _rebuild_tensor_v2(arguments: tuple[Any, ...]) -> Tensor:
    match arguments:
        case (storage, offset, shape, strides, _, _, *metadata) if metadata in ([], [None], [{}]):
            return describe_tensor(storage, offset, shape, strides)
    raise CheckpointError("_rebuild_tensor_v2 with too few arguments, or with metadata")


def _parameter(arguments: tuple[Any, ...]) -> Tensor:
    match arguments:
        case (Tensor() as tensor, *rest) if len(rest) < 3:
            return tensor
    raise CheckpointError("a Parameter of something that is not a tensor")


def _size(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    match arguments:
        case (tuple(sizes),):
            return sizes
    raise CheckpointError("torch.Size with arguments other than a tuple")


PARAMETER = Global("torch.nn.parameter.Parameter", _parameter)
GLOBALS: dict[tuple[str, str], Global] = {
    ("collections", "OrderedDict"): Global("collections.OrderedDict", _ordered_dict),
    ("torch._utils", "_rebuild_tensor"): Global("_rebuild_tensor", _rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Global("_rebuild_tensor_v2", _rebuild_tensor_v2),
    ("torch._utils", "_rebuild_parameter"): Global("_rebuild_parameter", _parameter),
    ("torch.nn.parameter", "Parameter"): PARAMETER,
    ("torch", "Size"): Global("torch.Size", _size),
    ("torch.storage", "UntypedStorage"): Global("UntypedStorage", dtype=np.dtype(np.uint8)),
    **{("torch", name): Global(name, dtype=dtype) for name, dtype in STORAGE_DTYPES.items()},
    **{("torch", name): Global(f"torch.{name}") for name in _DTYPES.split()},
    **{  # the types of tensors in the tar archives of PyTorch 0.1
        (module, name.replace("Storage", "Tensor")): Global(f"a tensor type of {module}")
        for module in ("torch", "torch.cuda")
        for name in STORAGE_DTYPES
    },
}
