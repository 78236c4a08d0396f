"""The gating that commands use where the user does not say."""

import dataclasses
from typing import Any

from jax_excite import recipes
from jax_excite.gating import Gating
from jax_excite.models import ModelSpec


def excitation_gating(spec: ModelSpec, **given: Any) -> Gating:
    """The paper's gating at the temperatures that suit a network.

    Args:
        spec: the network.
        **given: fields of `Gating` that the user sets; None for one left to the network.
    """
    suited = {"temperature": spec.temperature, "pool_temperature": spec.temperature}
    settings = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(recipes.EXCITATION, **{**suited, **settings})
