"""Conversion of a PyTorch checkpoint to the names and layouts of `jax_excite.models`."""

import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from jax_excite.callables.pytree import named_leaves
from jax_excite.data.class_names import CLASS_NAMES
from jax_excite.errors import WeightsError
from jax_excite.models import ModelSpec, model_spec
from jax_excite.weights.files import LazyTensor, describe, split, write
from jax_excite.weights.loading import check_fit, refuse
from weights_converter import temperatures
from weights_converter.names import IGNORED, TABLES, Rule
from weights_converter.reader import Checkpoint, read_checkpoint
from weights_converter.recognise import count_classes, recognise


@dataclass(frozen=True)
class Conversion:
    """The result of converting a state dict.

    Attributes:
        spec: the model.
        num_classes: the number of logits.
        tensors: the weights in our layouts by our dotted names; each is made, and checked to be
            finite, on demand.
        ignored: the names in the state dict that have no counterpart in our models.
        renamed: the legacy names in the state dict, each with its present form.
        temperatures: the temperatures by site that `convert_file` measured; empty if it did not.
    """

    spec: ModelSpec
    num_classes: int
    tensors: dict[str, LazyTensor]
    ignored: list[str]
    renamed: dict[str, str]
    temperatures: dict[str, float] = field(default_factory=dict)


def convert(
    path: str | os.PathLike[str], model: str
) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Read a PyTorch checkpoint in the form that `jax_excite.load` expects.

    Args:
        path: a state dict as `torch.save` writes it, or a safetensors file with PyTorch's names.
        model: a key of `jax_excite.models.MODELS`.

    Returns:
        The model's weights by dotted name in our layouts, and the metadata of a weights file.

    Raises:
        WeightsError: the file is not a checkpoint, or does not fit the model exactly.
    """
    found = fit(read_checkpoint(path), model_spec(model), str(path))
    return found.tensors, describe(
        found.spec, source=Path(path), class_names=name_classes(found.num_classes)
    )


def convert_file(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    model: str | None = None,
    class_names: Sequence[str] | None = None,
    calibrate: bool | None = None,
) -> Conversion:
    """Convert a PyTorch checkpoint into the safetensors file `out`.

    Args:
        path: as for `convert`.
        out: the file to write; it appears only when it is complete.
        model: a key of `jax_excite.models.MODELS`; if None, the model is recognised from the names
            and shapes.
        class_names: a name for each logit; if None, ImageNet's names where there are 1000 logits.
        calibrate: whether to measure temperatures on photographs that come with scikit-image, and
            to store them with the weights. If None, for networks that need them (`calibrated` in
            their `ModelSpec`), if scikit-image is installed.

    Raises:
        ModuleNotFoundError: `calibrate` is true, but scikit-image is not installed.
        ExciteError: temperatures cannot be measured, for example because the network has no gates.
        WeightsError: as for `convert`, or no model is recognised, a weight is not finite, or the
            number of class names is wrong.
        OSError: `out` cannot be written.
    """
    state_dict = read_checkpoint(path)
    spec = model_spec(model or recognise(state_dict.shapes, str(path)))
    found = fit(state_dict, spec, str(path))
    names = name_classes(found.num_classes, class_names)
    metadata = describe(spec, source=Path(path), class_names=names)
    if calibrate is None:
        calibrate = temperatures.are_needed(spec, metadata) and find_spec("skimage") is not None
    if calibrate:
        measured = temperatures.measure(spec, found.num_classes, found.tensors, metadata)
        found = replace(found, temperatures=measured)
    write(out, found.tensors, {**metadata, **temperatures.stored(found.temperatures)})
    return found


def name_classes(number: int, given: Sequence[str] | None = None) -> Sequence[str] | None:
    """The names of a network's classes: those given, else ImageNet's if there are 1000 classes.

    Raises:
        WeightsError: names are given, but not one for each class.
    """
    if given is None:
        return CLASS_NAMES if number == len(CLASS_NAMES) else None
    if len(given) != number:
        raise WeightsError(f"{len(given)} class names are given for a network of {number} classes")
    return given


def fit(
    state_dict: Mapping[str, np.ndarray], spec: ModelSpec, what: str = "the state dict"
) -> Conversion:
    """Match a state dict with a model, name by name.

    Args:
        state_dict: arrays by their PyTorch names.
        spec: the model; the number of classes is taken from the state dict.
        what: where the arrays come from, for the error message.

    Raises:
        WeightsError: names are missing, unexpected or duplicate, or tensors have a different shape.
            The message covers every kind of problem.
    """
    table = TABLES[spec.family]
    keys: dict[str, str] = {}
    ignored, twice = [], []
    for key in state_dict:
        name = table.rename(key)
        if re.fullmatch(IGNORED, key):
            ignored.append(key)
        elif name in keys:
            twice.append(f"{keys[name]} and {key}")
        else:
            keys[name] = key
    renamed = {key: name for name, key in keys.items() if name != key}

    described = {name: _describe(state_dict, key) for name, key in keys.items()}
    num_classes = count_classes({name: shape for name, (shape, _) in described.items()}, spec)
    abstract = spec.abstract(num_classes=num_classes)
    tensors: dict[str, LazyTensor] = {}
    missing, misshaped = [], []
    for target, leaf in named_leaves(abstract).items():
        rule, source = find_rule(target, leaf.ndim, table.rules)
        if source not in keys:
            missing.append(source)
            continue
        key, (shape, dtype) = keys.pop(source), described[source]
        wanted = _source_shape(rule, leaf.shape)
        if shape not in (wanted, (*wanted, *(1,) * rule.ones)):
            misshaped.append(f"{key} is {list(shape)} instead of {list(wanted)}")
        else:
            blocks = functools.partial(_blocks, state_dict, key, rule)
            tensors[target] = LazyTensor(leaf.shape, dtype, blocks)
    refuse(
        f"{what} does not fit {spec.name}",
        {
            "missing": missing,
            "unexpected": list(keys.values()),
            "mis-shaped": misshaped,
            "there twice": twice,
        },
    )
    check_fit(abstract, tensors, f"{what} does not fit {spec.name}")
    return Conversion(spec, num_classes, tensors, ignored, renamed)


def find_rule(target: str, rank: int, rules: tuple[Rule, ...]) -> tuple[Rule, str]:
    """The only rule that matches one of our weights, and the weight's PyTorch name."""
    ((rule, match),) = [
        (rule, match)
        for rule in rules
        if rule.rank == rank and (match := re.fullmatch(rule.pattern, target))
    ]
    return rule, match.expand(rule.source)


def _describe(state_dict: Mapping[str, np.ndarray], key: str) -> tuple[tuple[int, ...], np.dtype]:
    """The shape and dtype of an array, which are known without making an array of a checkpoint."""
    if isinstance(state_dict, Checkpoint):
        return state_dict.shapes[key], state_dict.dtypes[key]
    return state_dict[key].shape, state_dict[key].dtype


def _source_shape(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[rule.order.index(axis)] for axis in range(len(shape)))


def _blocks(state_dict: Mapping[str, np.ndarray], key: str, rule: Rule) -> Iterator[np.ndarray]:
    """Yield the weight in our layout, part by part, after checking that each part is finite."""
    for block in map(np.ascontiguousarray, split(_arrange(rule, state_dict[key]))):
        if not np.isfinite(block).all():
            raise WeightsError(f"{key} holds NaN or infinity")
        yield block


def _arrange(rule: Rule, array: np.ndarray) -> np.ndarray:
    """A view whose elements, in C order, are those of the weight in our layout."""
    if rule.flattened is None:
        return array.reshape(array.shape[: len(rule.order)]).transpose(rule.order)
    return array.reshape(-1, *rule.flattened).transpose(2, 3, 1, 0)
