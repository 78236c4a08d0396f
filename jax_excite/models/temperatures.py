"""Temperatures of weights, by site: those stored with them, and those of published weights.

`temperatures.json` has a temperature per site, by network and by the name of the weights. It is the
default of `calibrate` on photographs that come with scikit-image and scikit-learn, and written by
`python -m experiments.temperatures`.
"""

import functools
import json
from pathlib import Path

from jax_excite.errors import WeightsError
from jax_excite.models.classifier import Temperatures

FILE = Path(__file__).with_suffix(".json")


@functools.cache
def _measured() -> dict[str, dict[str, dict[str, float]]]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def measured_temperatures(name: str, weights: str | None) -> Temperatures:
    """The temperatures of a network by site; empty if there are none for these weights.

    Args:
        name: the name of the network.
        weights: the name of the published weights, such as "IMAGENET1K_V1"; None for any others.
    """
    return tuple(_measured().get(name, {}).get(weights or "", {}).items())


def read_temperatures(text: str | None, what: str) -> Temperatures:
    """The temperatures in the metadata of a file; empty if there are none.

    Args:
        text: JSON with a number, or a list of one number per channel, by site; or None.
        what: the file, for the error message.

    Raises:
        WeightsError: the text is something else.
    """
    try:
        return tuple(
            (site, tuple(map(float, value)) if isinstance(value, list) else float(value))
            for site, value in json.loads(text or "{}").items()
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{what} has temperatures that are not a mapping from sites to numbers: {error!r}"
        ) from error
