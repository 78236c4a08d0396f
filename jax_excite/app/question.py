"""What a person asks the page for, checked, and the run that answers it."""

import dataclasses
import math
from typing import Any

from jax_excite.app.networks import Opened
from jax_excite.app.photograph import Photograph
from jax_excite.attributions.registry import METHODS
from jax_excite.cli.columns import Columns
from jax_excite.cli.gatings import Recipe, at_temperature, recipe_of
from jax_excite.cli.runs import ASCENT, PULLBACK, SWEEP, Run
from jax_excite.data.class_names import class_index
from jax_excite.errors import ExciteError

# The methods that are single pullbacks, which can be climbed along, with their recipes.
PULLBACKS = {
    "excitation_pullback": Recipe.EXCITATION,
    "semantic_pullback": Recipe.SEMANTIC,
    "gradient": Recipe.VANILLA,
}
SHOWN = {
    ASCENT: "the image after climbing towards the target",
    PULLBACK: "the map",
    SWEEP: "the map at several temperatures",
}
TEMPERATURES = (0.0, 0.1, 0.3, 0.6, 1.0, 2.0, 4.0, math.inf)
MAX_TARGETS, MAX_STEPS, MAX_SIZE, MAX_TEMPERATURE = 9, 50, 1000.0, 4.0


@dataclasses.dataclass(frozen=True)
class Question:
    """What to show of a network and a photograph.

    Attributes:
        photograph: the photograph.
        models: the name of the network, or of two to compare.
        classes: the target classes, as indices of the first network.
        site: the site whose channels are the targets, or None for classes.
        channels: the channels of the site.
        method: the attribution method.
        shown: a key of `SHOWN`, `pullback` for all methods that are no single pullbacks.
        temperature: the temperature of all gates, or None for those that suit the network.
        steps: the number of steps of an ascent.
        step_size: the L2 norm of a step.
        radius: the radius of the L2 ball, or None for no ball.

    Raises:
        ExciteError: something is missing or out of its range.
    """

    photograph: Photograph
    models: tuple[str, ...]
    classes: tuple[int, ...] = ()
    site: str | None = None
    channels: tuple[int, ...] = ()
    method: str = "excitation_pullback"
    shown: str = ASCENT
    temperature: float | None = None
    steps: int = 10
    step_size: float = 20.0
    radius: float | None = 100.0

    def __post_init__(self) -> None:
        what, targets = ("channels", self.channels) if self.site else ("classes", self.classes)
        if not 1 <= len(targets) <= MAX_TARGETS:
            raise ExciteError(f"{len(targets)} {what} are chosen: choose 1 to {MAX_TARGETS}")
        if self.site and len(self.models) > 1:
            raise ExciteError("a hidden unit belongs to one network: compare networks by classes")
        if self.method not in METHODS or self.shown not in SHOWN:
            raise ExciteError(f"there is no method {self.method!r} that shows {self.shown!r}")
        if self.method not in PULLBACKS and (self.site or self.shown != PULLBACK):
            raise ExciteError(f"{self.method} has maps of classes only: choose the map")
        if self.shown == SWEEP and (len(targets) > 1 or self.method == "gradient"):
            raise ExciteError("a sweep has one target, and a method with temperatures")
        if self.temperature is not None:
            _check("the temperature", self.temperature, 0, MAX_TEMPERATURE)
        _check("the number of steps", self.steps, 1, MAX_STEPS)
        _check("the step size", self.step_size, 0.001, MAX_SIZE)
        if self.radius is not None:
            _check("the radius", self.radius, 0.001, MAX_SIZE)

    def run(self, opened: Opened, first: Opened) -> Run:
        """The run that answers the question for one of the networks.

        Args:
            opened: the network.
            first: the first of the networks.

        Raises:
            ExciteError: the network has no class of that name.
        """
        recipe = PULLBACKS.get(self.method, Recipe.EXCITATION)
        gating, ascent = recipe_of(recipe, opened.spec)
        if recipe is Recipe.EXCITATION:
            stored = opened.network.site_temperatures
            gating = dataclasses.replace(gating, site_temperatures=stored)
        if self.temperature is not None and recipe is not Recipe.VANILLA:
            gating = at_temperature(gating, self.temperature)
        what = self.shown if self.method in PULLBACKS else self.method
        climbed: dict[str, Any] = {
            "steps": int(self.steps),
            "step_size": self.step_size,
            "radius": self.radius,
        }
        return Run(
            what=what,
            recipe=recipe,
            gating=gating,
            columns=self._columns(opened, first),
            ascent=dataclasses.replace(ascent, **climbed) if what == ASCENT else None,
            stepwise=True,
            temperatures=TEMPERATURES if what == SWEEP else (),
        )

    def program(self, model: str) -> tuple[str | None, ...]:
        """What tells the compiled program of the answer from others."""
        return model, self.method, self.site

    def _columns(self, opened: Opened, first: Opened) -> Columns:
        if self.site:
            return Columns.of_channels(self.channels, self.site)
        names, theirs = opened.network.class_names, first.network.class_names
        indices = [class_index(each, theirs) for each in self.classes]
        if names != theirs:
            indices = [class_index(theirs[index], names) for index in indices]
        return Columns.of_classes(indices, names)


def _check(what: str, value: Any, low: float, high: float) -> None:
    """Raise `ExciteError` unless a value is a number in the range."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and low <= value <= high):
        raise ExciteError(f"{what} is {value}: give a number from {low:g} to {high:g}")
