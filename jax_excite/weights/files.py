"""Files of weights: safetensors, with metadata that ties the weights to their model.

Files are written tensor by tensor, so that writing needs no more memory than the largest tensor.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from jax_excite.errors import WeightsError
from jax_excite.models import ModelSpec, Preprocessing
from jax_excite.models.timm import CONFIG, read_preprocessing
from jax_excite.replacing import replacing

FORMAT = "jax_excite 1"
DIGEST = "data_sha256"  # the digest of all bytes after the header

_DTYPES = {
    np.dtype(np.float64): "F64",
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.int32): "I32",
    np.dtype(np.int64): "I64",
}
_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor whose elements are made on demand.

    Attributes:
        shape: the length of each axis.
        dtype: the dtype of the elements.
        blocks: returns the elements in C order, as consecutive arrays of any shapes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    blocks: Callable[[], Iterable[np.ndarray]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The elements, in a new array."""
        if copy is False:
            raise ValueError("a lazy tensor has no array to share")
        elements = np.empty(math.prod(self.shape), self.dtype)
        filled = 0
        for block in self.blocks():
            elements[filled : filled + block.size] = block.reshape(-1)
            filled += block.size
        array = elements.reshape(self.shape)
        return array if dtype is None else array.astype(dtype)


Tensor = np.ndarray | LazyTensor


def split(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the parts of an array, in C order, of at most about 16 MB each."""
    if array.nbytes <= _BLOCK_BYTES or array.ndim == 0:
        yield array
        return
    rows = _BLOCK_BYTES * len(array) // array.nbytes
    if rows == 0:
        for row in array:
            yield from split(row)
    else:
        for start in range(0, len(array), rows):
            yield array[start : start + rows]


def write(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors and metadata; `path` always holds either the old file or the complete new one.

    The format and the SHA-256 of the tensors' bytes are added to the metadata.

    Args:
        path: the file.
        tensors: arrays or `LazyTensor`s by dotted name; of a `LazyTensor`, only one block at a time
            is made.
        metadata: metadata such as `describe` returns.

    Raises:
        WeightsError: a tensor has a dtype that weights never have.
        OSError: the file cannot be written.
    """
    path = Path(path)
    # Wide elements first, so that each is aligned.
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize))
    digest = hashlib.sha256()
    with replacing(path) as partial, partial.open("xb") as file:
        file.write(_header(ordered, metadata, digest.hexdigest()))
        for tensor in ordered.values():
            blocks = tensor.blocks() if isinstance(tensor, LazyTensor) else (tensor,)
            for block in blocks:
                # The reshape copies a block that is not in C order.
                elements = np.asarray(block).reshape(-1).view(np.uint8).data
                digest.update(elements)
                file.write(elements)
        file.seek(0)
        file.write(_header(ordered, metadata, digest.hexdigest()))
        file.flush()
        os.fsync(file.fileno())


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], digest: str) -> bytes:
    """The length of the JSON, then the JSON: dtypes, shapes, places of tensors, and the metadata.

    Format: https://huggingface.co/docs/safetensors, "Format".
    """
    entries: dict[str, Any] = {
        "__metadata__": {**metadata, "format": FORMAT, DIGEST: digest},
    }
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise WeightsError(f"{name} has dtype {tensor.dtype}, which cannot be written")
        start, end = end, end + math.prod(tensor.shape) * tensor.dtype.itemsize
        entries[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors and the metadata of a file that `write` wrote.

    Raises:
        WeightsError: the file is not a safetensors file, or not of this format.
    """
    with _opened(path) as (file, metadata):
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Only the metadata; raises the same errors as `read`."""
    with _opened(path) as (_, metadata):
        return metadata


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[Any, dict[str, str]]]:
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise WeightsError(
                    f"{path} has format {metadata.get('format')!r}, but {FORMAT!r} is needed: "
                    "convert the original PyTorch checkpoint again"
                )
            yield file, metadata
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a safetensors file: {error}") from error


def data_digest(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of all bytes after the header, to compare with `DIGEST` in the metadata."""
    with Path(path).open("rb") as file:
        file.seek(int.from_bytes(file.read(8), "little"), os.SEEK_CUR)
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(
    spec: ModelSpec,
    *,
    source: Path | None = None,
    class_names: Sequence[str] | None = None,
) -> dict[str, str]:
    """The metadata of a file.

    Args:
        spec: the model that the weights are for.
        source: the file from which they were converted; its name and SHA-256 are recorded, and the
            SHA-256 identifies published weights and thereby their preprocessing.
        class_names: a name for each logit.

    Raises:
        WeightsError: the network is one of timm's, and there is no `config.json` beside the source.
    """
    metadata = {"model": spec.name}
    preprocessing = spec.preprocessing
    if source is not None:
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        metadata |= {"source": source.name, "source_sha256": digest}
        for published in spec.published:
            if digest.startswith(published.sha256_prefix):
                metadata["published"] = published.name
                preprocessing = published.preprocessing
        preprocessing = _described_beside(source, spec) or preprocessing
    metadata["preprocessing"] = json.dumps(dataclasses.asdict(preprocessing))
    if class_names is not None:
        metadata["class_names"] = json.dumps(list(class_names))
    return metadata


def read_any(path: Path, model: str) -> tuple[Mapping[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file of this library, or of a checkpoint of `model`.

    Raises:
        WeightsError: there is no such file, it is of another model, or no installed package can
            read it.
    """
    if not path.is_file():
        raise WeightsError(f"{path} is not a file: give a PyTorch checkpoint or a safetensors file")
    if is_ours(path):
        tensors, metadata = read(path)
        if metadata.get("model") != model:
            raise WeightsError(f"{path} holds weights of {metadata.get('model')!r}, not of {model}")
        return tensors, metadata
    return converter(path).convert(path, model)


def converter(path: Path) -> Any:
    """The installed module with `convert` and `convert_file`, which read PyTorch checkpoints.

    Raises:
        WeightsError: there is none, so that `path` cannot be read.
    """
    found = importlib.metadata.entry_points(group="jax_excite.checkpoints", name="torch")
    if not found:
        raise WeightsError(
            f"{path} is not a safetensors file written by jax_excite, and PyTorch checkpoints "
            "cannot be read: the package weights_converter, which comes with jax-excite, is not "
            "installed"
        )
    return next(iter(found)).load()


def is_ours(path: Path) -> bool:
    """Whether the file is complete and in a format of this library, the current or a future one."""
    with path.open("rb") as file:
        if file.read(9)[8:] != b"{":  # eight bytes of length, then a JSON object
            return False
    try:
        with safe_open(path, framework="np") as file:
            return (file.metadata() or {}).get("format", "").startswith("jax_excite")
    except SafetensorError:
        return False


def _described_beside(source: Path, spec: ModelSpec) -> Preprocessing | None:
    """The preprocessing in a `config.json` of timm's beside a checkpoint."""
    config = source.with_name(CONFIG)
    found = read_preprocessing(config, spec) if config.is_file() else None
    if found is None and spec.hub:
        raise WeightsError(
            f"{source} has no {CONFIG} beside it, which says how {spec.name} takes images: put the "
            f"one from https://huggingface.co/{spec.hub} there"
        )
    return found
