"""The gating that commands use: that of a recipe, with the settings of the user or the network."""

import dataclasses
import enum
from collections.abc import Iterable
from typing import Annotated, Any

import numpy as np
import typer

from jax_excite import recipes
from jax_excite.ascent import Ascent
from jax_excite.cli.console import announce
from jax_excite.cli.networks import Network
from jax_excite.errors import ExciteError
from jax_excite.gating import GATE_FUNCTIONS, Gating
from jax_excite.models import ModelSpec


class Recipe(enum.StrEnum):
    """The published settings."""

    EXCITATION = "excitation"
    SEMANTIC = "semantic"
    VANILLA = "vanilla"


RecipeName = Annotated[
    Recipe,
    typer.Option(
        help="Published settings to use: excitation softens ReLUs and max-pools, semantic every "
        "kind of gate, vanilla none."
    ),
]

_RECIPES = {
    Recipe.EXCITATION: (recipes.EXCITATION, recipes.EXCITATION_PGA),
    Recipe.SEMANTIC: (recipes.SEMANTIC, recipes.SEMANTIC_PGA),
    Recipe.VANILLA: (recipes.VANILLA, recipes.EXCITATION_PGA),
}


def recipe_of(recipe: Recipe, spec: ModelSpec | None, **given: Any) -> tuple[Gating, Ascent]:
    """The gating and the ascent of a recipe, with the user's settings or the network's.

    Args:
        recipe: the recipe.
        spec: the network; None for one that is not in the registry, which gets the recipe's
            temperatures. Those of the registry are for the recipe of the paper.
        **given: fields of `Gating` that the user sets; None keeps the default of a field.

    Raises:
        ExciteError: the recipe is the plain gradient, which has no settings, but some are given.
    """
    gating, ascent = _RECIPES[recipe]
    settings = {name: value for name, value in given.items() if value is not None}
    if recipe is Recipe.VANILLA and settings:
        raise ExciteError(
            "--recipe vanilla is the plain gradient, which has no such settings: leave out "
            f"{options(settings)}"
        )
    suited = {}
    if recipe is Recipe.EXCITATION and spec is not None and spec.temperature is not None:
        suited = {"temperature": spec.temperature, "pool_temperature": spec.temperature}
    return dataclasses.replace(gating, **{**suited, **settings}), ascent


def excitation_gating(spec: ModelSpec | None, **given: Any) -> Gating:
    """The paper's gating at the temperatures that are recommended for a network."""
    return recipe_of(Recipe.EXCITATION, spec, **given)[0]


def gating_of(
    spec: ModelSpec | None,
    network: Network,
    recipe: Recipe = Recipe.EXCITATION,
    *,
    temperature: float | None,
    gate: str | None = None,
) -> Gating:
    """The gating of a network with one temperature for ReLUs and max-pools.

    Args:
        spec: the network's entry in the registry, or None.
        network: the network with its weights.
        recipe: the recipe.
        temperature: the temperature that the user sets, or None for the network's own.
        gate: the gate function that the user sets, or None for the recipe's.
    """
    gating, _ = recipe_of(
        recipe, spec, temperature=temperature, pool_temperature=temperature, gate=gate
    )
    return with_stored_temperatures(gating, spec, network, recipe, temperature)


def check_gate(gate: str | None) -> None:
    """Raise `ExciteError` if a user names a gate function that does not exist."""
    if gate is not None and gate not in GATE_FUNCTIONS:
        raise ExciteError(f"there is no gate {gate!r}: choose one of {', '.join(GATE_FUNCTIONS)}")


def with_stored_temperatures(
    gating: Gating,
    spec: ModelSpec | None,
    network: Network,
    recipe: Recipe,
    *given: float | None,
) -> Gating:
    """The gating at the temperatures stored with the weights, unless the user gives any.

    They were measured for the paper's recipe. If there are none, but they are needed, a message
    says so.
    """
    if recipe is not Recipe.EXCITATION or any(temperature is not None for temperature in given):
        return gating
    if not network.site_temperatures and (spec is None or spec.calibrated):
        announce(
            "These weights have no temperatures of their own (jax-excite calibrate measures them): "
            f"taking {gating.temperature:g} for ReLUs and {gating.pool_temperature:g} for max-pools"
        )
    return dataclasses.replace(gating, site_temperatures=network.site_temperatures)


def at_temperature(gating: Gating, temperature: float) -> Gating:
    """A gating with one temperature for all gates that it softens.

    It has the structure of the gating that is given, so compiled programs serve both.
    """
    own = {
        site: np.full_like(value, temperature) for site, value in gating.site_temperatures.items()
    }
    fields = [field.name for field in dataclasses.fields(gating)]
    kinds = [name for name in fields if name.endswith("temperature")]
    softened = {name: temperature for name in kinds if getattr(gating, name) is not None}
    return dataclasses.replace(gating, **softened, site_temperatures=own)


def options(settings: Iterable[str]) -> str:
    """The options that set some settings."""
    return ", ".join(f"--{name.replace('_', '-')}" for name in settings)
