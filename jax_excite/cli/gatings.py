"""The gating that commands use where the user does not choose one."""

import dataclasses
from typing import Any

from jax_excite import recipes
from jax_excite.cli.networks import Network
from jax_excite.errors import ExciteError
from jax_excite.gating import GATE_FUNCTIONS, Gating
from jax_excite.models import ModelSpec


def excitation_gating(spec: ModelSpec | None, **given: Any) -> Gating:
    """The paper's gating at the temperatures that are recommended for a network.

    Args:
        spec: the network; None for one that is not in the registry, which gets the paper's.
        **given: fields of `Gating` that the user sets; None keeps the default of a field.
    """
    suited = {}
    if spec is not None:
        suited = {"temperature": spec.temperature, "pool_temperature": spec.temperature}
    settings = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(recipes.EXCITATION, **{**suited, **settings})


def gating_of(
    spec: ModelSpec | None, network: Network, *, temperature: float | None, gate: str | None = None
) -> Gating:
    """The gating of a network with one temperature for all kinds of gates.

    Args:
        spec: the network's entry in the registry, or None.
        network: the network with its weights.
        temperature: the temperature that the user sets, or None for the network's own.
        gate: the gate function that the user sets, or None for the paper's.
    """
    gating = excitation_gating(
        spec, temperature=temperature, pool_temperature=temperature, gate=gate
    )
    return with_stored_temperatures(gating, network, temperature)


def check_gate(gate: str | None) -> None:
    """Raise `ExciteError` if a user names a gate function that does not exist."""
    if gate is not None and gate not in GATE_FUNCTIONS:
        raise ExciteError(f"there is no gate {gate!r}: choose one of {', '.join(GATE_FUNCTIONS)}")


def with_stored_temperatures(gating: Gating, network: Network, *given: float | None) -> Gating:
    """The gating at the temperatures stored with the weights, unless the user gives any."""
    if any(temperature is not None for temperature in given):
        return gating
    return dataclasses.replace(gating, site_temperatures=network.site_temperatures)
