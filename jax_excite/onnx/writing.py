"""Copies of ONNX files with more metadata."""

from collections.abc import Mapping
from pathlib import Path

from jax_excite.errors import NetworkError
from jax_excite.onnx.reading import import_onnx, malformed
from jax_excite.replacing import replacing


def copy_with_metadata(path: Path, out: Path, metadata: Mapping[str, str]) -> None:
    """Write a copy of an ONNX file in which some entries of its metadata are new.

    Args:
        path: the file.
        out: the file to write; it appears only when it is complete, and may be `path` itself.
        metadata: text by key. Entries of the file with other keys are kept.

    Raises:
        NetworkError: `path` is not an ONNX file, or it has tensors in files beside it, which a copy
            in another folder would not find.
        OSError: `out` cannot be written.
    """
    onnx = import_onnx()
    with malformed(path):
        model = onnx.load_model_from_string(path.read_bytes())
    attributes = [a.t for node in model.graph.node for a in node.attribute]
    elsewhere = any(
        tensor.data_location == onnx.TensorProto.EXTERNAL
        for tensor in [*model.graph.initializer, *attributes]
    )
    if elsewhere and out.resolve().parent != path.resolve().parent:
        raise NetworkError(
            f"{path} has tensors in files beside it: write {out.name} into {path.parent} too"
        )
    kept = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**kept, **metadata})
    with replacing(out) as partial:
        partial.write_bytes(model.SerializeToString())
