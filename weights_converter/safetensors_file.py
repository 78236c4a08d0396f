"""A strict reader of safetensors files, which checks the header before using it.

The layout is that of https://huggingface.co/docs/safetensors: the header's length, the header, and
the tensors without gaps.
"""

import json
import math
from collections.abc import Iterable
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from weights_converter.errors import CheckpointError
from weights_converter.files import File, Record
from weights_converter.tensors import (
    MAX_AXES,
    MAX_ELEMENTS,
    Contents,
    Storage,
    Tensor,
    describe_tensor,
)

MAX_HEADER_BYTES = 4 << 20
MAX_TENSORS = 20_000
MAX_BRACKETS = 100_000  # three per tensor, and those in the texts of the metadata
_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


def open_safetensors(file: File) -> Contents:
    """Read the header of a safetensors file, and check every tensor against the file.

    Args:
        file: the whole file.

    Raises:
        CheckpointError: see `weights_converter.reader.read_checkpoint`.
    """
    length = int.from_bytes(file.read(0, 8), "little")
    start = 8 + length
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"a header of {length} bytes, more than {MAX_HEADER_BYTES}")
    if start > file.size:
        raise CheckpointError(f"a header of {length} bytes in a file of {file.size} bytes")
    header = _parse(file.read(8, length))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError("the metadata are not a mapping from names to strings")
    if len(header) > MAX_TENSORS:
        raise CheckpointError(f"{len(header)} tensors, more than {MAX_TENSORS}")
    tensors, records = {}, {}
    for name, entry in header.items():
        tensors[name], records[name] = _read_entry(name, entry, start)
    _check_ranges(records.values(), start, file.size)
    return Contents("safetensors", tensors, records, metadata=metadata)


def _parse(header: bytes) -> dict[str, Any]:
    if header.count(b"[") + header.count(b"{") > MAX_BRACKETS:
        raise CheckpointError(f"the header has more than {MAX_BRACKETS} lists and objects")
    try:
        value = json.loads(
            header.decode(), object_pairs_hook=_distinct, parse_constant=_refuse_constant
        )
    except CheckpointError:
        raise
    except RecursionError:
        raise CheckpointError("the header is nested too deep") from None
    except ValueError as error:
        raise CheckpointError(f"the header is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError("the header is not a JSON object")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise CheckpointError(f"the header has {twice!a:.200} twice")
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise CheckpointError(f"the header holds {name}")


def _read_entry(name: str, entry: object, start: int) -> tuple[Tensor, Record]:
    where = f"tensor {name!a:.200}"
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end], **rest}:
            pass
        case _:
            raise CheckpointError(f"{where} has no dtype, shape and two data_offsets")
    if rest:
        raise CheckpointError(f"{where} has more than a dtype, shape and data_offsets")
    if dtype not in _DTYPES:
        raise CheckpointError(f"{where} has the dtype {dtype!a:.80}, which cannot be read")
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
        raise CheckpointError(f"{where} has data_offsets that are not a range")
    if len(shape) > MAX_AXES:
        raise CheckpointError(f"{where} has {len(shape)} axes, more than {MAX_AXES}")
    if not all(type(size) is int and 0 <= size <= MAX_ELEMENTS for size in shape):
        raise CheckpointError(f"{where} has a shape with an entry that is not a count")
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    storage = Storage(name, _DTYPES[dtype], math.prod(shape))
    if storage.nbytes != end - begin:
        raise CheckpointError(f"{where} needs {storage.nbytes} bytes, but has {end - begin}")
    tensor = describe_tensor(storage, 0, tuple(shape), strides)
    return tensor, Record(name, start + begin, start + end, end - begin)


def _check_ranges(records: Iterable[Record], start: int, size: int) -> None:
    """Refuse records that do not fill the file from `start` to its end, one after the other."""
    free = start
    for record in sorted(records, key=lambda record: (record.start, record.end)):
        if record.start != free:
            what = "overlaps another" if record.start < free else "lies after a gap"
            raise CheckpointError(f"tensor {record.name!a:.200} {what}")
        if record.end > size:
            raise CheckpointError(f"tensor {record.name!a:.200} ends outside the file")
        free = record.end
    if free != size:
        raise CheckpointError(f"{size - free} bytes follow the last tensor")
