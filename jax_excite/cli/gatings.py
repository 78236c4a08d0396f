"""The gating that commands use where the user does not choose one."""

import dataclasses
from typing import Any

from jax_excite import recipes
from jax_excite.gating import Gating
from jax_excite.models import Classifier, ModelSpec


def excitation_gating(spec: ModelSpec, **given: Any) -> Gating:
    """The paper's gating at the temperatures that are recommended for a network.

    Args:
        spec: the network.
        **given: fields of `Gating` that the user sets; None keeps the default of a field.
    """
    suited = {"temperature": spec.temperature, "pool_temperature": spec.temperature}
    settings = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(recipes.EXCITATION, **{**suited, **settings})


def with_stored_temperatures(gating: Gating, network: Classifier, *given: float | None) -> Gating:
    """The gating at the temperatures stored with the weights, unless the user gives any."""
    if any(temperature is not None for temperature in given):
        return gating
    return dataclasses.replace(gating, site_temperatures=network.site_temperatures)
