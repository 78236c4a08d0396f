"""`jax-excite sanity`: does the map depend on the weights, on the class and on the gates?"""

from pathlib import Path
from typing import Annotated

import typer

from jax_excite.cli.console import announce, errors_in_one_line
from jax_excite.cli.gatings import gating_of
from jax_excite.cli.networks import DEFAULT_MODEL, ModelName, Weights, open_images, open_network
from jax_excite.data.class_names import class_index
from jax_excite.errors import ExciteError
from jax_excite.evaluation.sanity import compare, randomisation_cascade, temperature_limits
from jax_excite.models import model_spec
from jax_excite.pullbacks.pullback import pullback

RANDOM_COSINE = 0.5
SAME_CLASS_COSINE = 0.95
SAME_FIELD_DISTANCE = 1e-2
FAILED = 3


def sanity(
    image: Annotated[Path, typer.Argument(help="A photograph.")],
    classes: Annotated[
        str, typer.Option(help="Names or indices of two classes, separated by a comma.")
    ],
    model: ModelName = DEFAULT_MODEL,
    weights: Weights = None,
    temperature: Annotated[
        float | None, typer.Option(help="Temperature of ReLUs and max-pools. Default: the model's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random weights.", min=0)] = 0,
) -> None:
    """Check the method on a photograph; exits with 3 if a check fails."""
    with errors_in_one_line():
        spec = model_spec(model)
        _, network = open_network(spec.name, weights)
        indices = [class_index(name.strip(), network.class_names) for name in classes.split(",")]
        if len(set(indices)) != 2:
            raise ExciteError(f"--classes is {classes}: give two different classes")
        x = open_images(network, [image])[0]
        gating = gating_of(spec, network, temperature=temperature)

        announce("Randomising the layers from the top down")
        cascade = randomisation_cascade(network, x, indices[0], gating=gating, seed=seed)
        typer.echo("randomised down to    cosine  rank correlation")
        for row in cascade:
            typer.echo(f"{row.name:<20}  {row.cosine:6.3f}  {row.rank_correlation:6.3f}")
        fields = [pullback(network, x, index, gating=gating) for index in indices]
        two = compare("two classes", *fields)
        typer.echo(f"{two.name:<20}  {two.cosine:6.3f}  {two.rank_correlation:6.3f}")
        limits = temperature_limits(network, x, indices[0], gating=gating)
        typer.echo("\nrelative L2 distance")
        for name, distance in limits.items():
            typer.echo(f"{name:<24}  {distance:.1e}")

        checks = {
            f"all weights random: |cosine| <= {RANDOM_COSINE}": abs(cascade[-1].cosine)
            <= RANDOM_COSINE,
            f"two classes: cosine <= {SAME_CLASS_COSINE}": two.cosine <= SAME_CLASS_COSINE,
            f"limits: distances <= {SAME_FIELD_DISTANCE}": max(limits.values())
            <= SAME_FIELD_DISTANCE,
        }
        typer.echo()
        for check, passed in checks.items():
            typer.echo(f"{'passed' if passed else 'FAILED'}  {check}")
    if not all(checks.values()):
        raise typer.Exit(FAILED)
