"""Checks that a converted file is intact and agrees with the checkpoint and with PyTorch."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from jax_excite.errors import WeightsError
from jax_excite.models import ModelSpec, model_spec
from jax_excite.weights.files import DIGEST, data_digest, read_metadata, split
from jax_excite.weights.loading import check_fit, read_settings
from weights_converter.convert import fit
from weights_converter.reader import Checkpoint, read_checkpoint
from weights_converter.recognise import count_classes


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        what: what was checked, in a few words.
        passed: whether the check passed; None if it could not be made.
        detail: what was found.
    """

    what: str
    passed: bool | None
    detail: str


def verify(
    path: str | os.PathLike[str], against: str | os.PathLike[str] | None = None
) -> list[Check]:
    """Check a converted file.

    Args:
        path: a safetensors file that `weights_converter.convert_file` wrote.
        against: a PyTorch checkpoint. The tensors are compared with it. If all checks have passed
            and torch is installed, the logits are compared too.

    Returns:
        The checks that were made, whether or not they passed.

    Raises:
        WeightsError: `path` is not such a file, or `against` is not a checkpoint of its model.
    """
    metadata = read_metadata(path)
    tensors = read_checkpoint(path)
    spec = model_spec(metadata.get("model", ""))
    checks = [
        _names_and_shapes(spec, tensors, str(path)),
        _finite(tensors),
        _settings(spec, tensors, metadata, str(path)),
        _checksum(path, metadata),
    ]
    if against is not None:
        checks.append(_same_tensors(spec, tensors, Path(against)))
        if all(check.passed for check in checks):
            checks.append(_same_logits(spec, Path(path), Path(against)))
    return checks


def _names_and_shapes(spec: ModelSpec, tensors: Checkpoint, path: str) -> Check:
    abstract = spec.abstract(num_classes=count_classes(tensors.shapes, spec))
    found = {
        name: jax.ShapeDtypeStruct(shape, tensors.dtypes[name])
        for name, shape in tensors.shapes.items()
    }
    try:
        check_fit(abstract, found, path)
    except WeightsError as error:
        return Check("names and shapes", False, str(error))
    return Check("names and shapes", True, f"{len(tensors)} tensors of {spec.name}")


def _finite(tensors: Checkpoint) -> Check:
    wrong = [
        name
        for name, array in tensors.items()
        if not all(np.isfinite(block).all() for block in split(array))
    ]
    return Check("finite values", not wrong, ", ".join(wrong) or "all")


def _settings(
    spec: ModelSpec, tensors: Checkpoint, metadata: Mapping[str, str], path: str
) -> Check:
    try:
        _, names = read_settings(metadata, count_classes(tensors.shapes, spec), path)
    except WeightsError as error:
        return Check("preprocessing and classes", False, str(error))
    return Check("preprocessing and classes", True, f"{len(names)} classes")


def _checksum(path: str | os.PathLike[str], metadata: Mapping[str, str]) -> Check:
    found, wanted = data_digest(path), metadata.get(DIGEST, "none recorded")
    detail = found if found == wanted else f"{found}, but the file records {wanted}"
    return Check("checksum", found == wanted, detail)


def _same_tensors(spec: ModelSpec, tensors: Checkpoint, checkpoint: Path) -> Check:
    wanted = fit(read_checkpoint(checkpoint), spec, str(checkpoint)).tensors
    wrong = [
        name
        for name, tensor in wanted.items()
        if name not in tensors or not _identical(tensors[name], np.asarray(tensor))
    ]
    detail = ", ".join(wrong) or f"{len(wanted)} tensors equal those of {checkpoint.name}"
    return Check("same tensors", not wrong, detail)


def _identical(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all())


def _same_logits(spec: ModelSpec, path: Path, checkpoint: Path) -> Check:
    from weights_converter.outputs import TOLERANCE, compare_logits

    try:
        error = compare_logits(spec, path, checkpoint)
    except ImportError as error:
        return Check(
            "same logits", None, f"PyTorch or the original network cannot be imported: {error}"
        )
    detail = f"relative L2 error {error:.1e} in float64, at most {TOLERANCE:g} is allowed"
    return Check("same logits", error <= TOLERANCE, detail)
