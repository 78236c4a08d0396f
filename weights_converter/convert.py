"""From a PyTorch checkpoint to the names and layouts of `jax_excite.models`."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jax_excite.imagenet import CLASS_NAMES
from jax_excite.models import model_spec
from jax_excite.weights import abstract_network, describe, named_leaves, refuse, write
from weights_converter.names import IGNORED, TABLES, Rule
from weights_converter.reader import read_checkpoint


def convert(
    path: str | os.PathLike[str], model: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read a PyTorch checkpoint.

    Args:
        path: a state dict as `torch.save` writes it.
        model: a key of `jax_excite.models.MODELS`.

    Returns:
        The model's weights by dotted name in our layouts, and the metadata of a weights file.

    Raises:
        WeightsError: the file is no checkpoint, or does not fit the model exactly.
    """
    path = Path(path)
    spec = model_spec(model)
    tensors = convert_tensors(read_checkpoint(path), model, str(path))
    return tensors, describe(spec, source=path, class_names=CLASS_NAMES)


def convert_file(path: str | os.PathLike[str], model: str, out: str | os.PathLike[str]) -> None:
    """Convert a PyTorch checkpoint into the safetensors file `out`; errors as for `convert`."""
    write(out, *convert(path, model))


def convert_tensors(
    state_dict: Mapping[str, np.ndarray], model: str, what: str = "the state dict"
) -> dict[str, np.ndarray]:
    """The weights in a state dict by our dotted names, in our layouts.

    Args:
        state_dict: arrays by their PyTorch names.
        model: a key of `jax_excite.models.MODELS`.
        what: where they come from, for the error.

    Raises:
        WeightsError: names are missing, unexpected or there twice, or tensors have another shape.
            All of them are listed.
    """
    spec = model_spec(model)
    table = TABLES[spec.family]
    keys: dict[str, str] = {}
    twice = []
    for key in state_dict:
        if not re.fullmatch(IGNORED, key):
            name = _rename(key, table.renames)
            if name in keys:
                twice.append(f"{keys[name]} and {key}")
            keys[name] = key

    tensors: dict[str, np.ndarray] = {}
    missing, misshaped = [], []
    for target, leaf in named_leaves(abstract_network(spec)).items():
        rule, source = find_rule(target, leaf.ndim, table.rules)
        if source not in keys:
            missing.append(source)
            continue
        key = keys.pop(source)
        array, wanted = state_dict[key], _source_shape(rule, leaf.shape)
        if array.shape != wanted:
            misshaped.append(f"{key} is {list(array.shape)} for {list(wanted)}")
        else:
            tensors[target] = _arrange(rule, array)
    refuse(
        f"{what} does not fit {model}",
        {
            "missing": missing,
            "unexpected": list(keys.values()),
            "mis-shaped": misshaped,
            "there twice": twice,
        },
    )
    return tensors


def find_rule(target: str, rank: int, rules: tuple[Rule, ...]) -> tuple[Rule, str]:
    """The one rule for a weight of ours, and the weight's PyTorch name."""
    ((rule, match),) = [
        (rule, match)
        for rule in rules
        if rule.rank == rank and (match := re.fullmatch(rule.pattern, target))
    ]
    return rule, match.expand(rule.source)


def _rename(key: str, renames: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in renames:
        key = re.sub(pattern, replacement, key)
    return key


def _source_shape(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[rule.order.index(axis)] for axis in range(len(shape)))


def _arrange(rule: Rule, array: np.ndarray) -> np.ndarray:
    if rule.flattened is not None:
        image = array.reshape(-1, *rule.flattened)
        array = image.transpose(0, 2, 3, 1).reshape(array.shape)
    return array.transpose(rule.order)
