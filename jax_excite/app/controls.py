"""The form of the page: photograph, network, targets, method and settings."""

import asyncio
import functools
from collections.abc import Callable, Sequence
from typing import Any

from nicegui import events, ui

from jax_excite.app.answer import Predicted
from jax_excite.app.networks import Networks
from jax_excite.app.photograph import MAX_BYTES, Photograph
from jax_excite.app.question import (
    MAX_SIZE,
    MAX_STEPS,
    MAX_TARGETS,
    MAX_TEMPERATURE,
    PULLBACKS,
    SHOWN,
    Question,
)
from jax_excite.app.slider import Slider
from jax_excite.ascent import Ascent
from jax_excite.attributions.registry import METHODS
from jax_excite.cli.runs import ASCENT, PULLBACK, SWEEP
from jax_excite.data.images import FORMATS
from jax_excite.data.photographs import PHOTOGRAPHS, packaged_photographs
from jax_excite.errors import ExciteError, ImageError
from jax_excite.recipes import EXCITATION_PGA, SEMANTIC_PGA

_ALONE = "no other"
_FIRST = "chelsea.png"


def samples() -> list[Photograph]:
    """The photographs that come with scikit-image."""
    paths = packaged_photographs(sorted(PHOTOGRAPHS, key=_FIRST.__ne__))
    return [Photograph.of(path.stem, path.read_bytes()) for path in paths]


class Controls:
    """The form; what it holds is read as a `Question`.

    Args:
        networks: the networks that are offered.
        samples: photographs to pick from.
        changed: called when an answer no longer fits what the form holds.
        looked: called when the photograph or the network is another.
        refused: called with a message about an upload.
    """

    def __init__(
        self,
        networks: Networks,
        samples: Sequence[Photograph],
        *,
        changed: Callable[[], Any],
        looked: Callable[[], Any],
        refused: Callable[[str], Any],
    ):
        self.photograph = samples[0]
        self._changed, self._looked, self._refused = changed, looked, refused
        self._show_photographs(samples)
        self._show_networks(networks)
        self._show_targets()
        self._show_method()
        self._show_settings()
        self._adapt()

    def question(self) -> Question:
        """What the form asks for.

        Raises:
            ExciteError: something is missing or out of its range.
        """
        site = self._site.value if self._hidden.value else None
        other = [] if self._other.value in (None, _ALONE) else [self._other.value]
        method = self._method.value
        return Question(
            photograph=self.photograph,
            models=tuple(dict.fromkeys([self.model, *other])),
            classes=tuple(self._classes.value or ()),
            site=site,
            channels=_channels(self._channels.value) if site else (),
            method=method,
            shown=self._shown.value if method in PULLBACKS else PULLBACK,
            temperature=None if self._suited.value else self._temperature.value,
            steps=int(_number(self._steps.value)),
            step_size=_number(self._step_size.value),
            radius=self._radius.value,
        )

    def prediction(self) -> Question:
        """A question about the same photograph and network whose program predicts its classes."""
        method = self._method.value
        pulled = method if method in PULLBACKS else "excitation_pullback"
        return Question(self.photograph, (self.model,), (0,), method=pulled, shown=PULLBACK)

    @property
    def model(self) -> str:
        """The name of the first network."""
        return self._model.value

    def predicted(self, found: Predicted) -> None:
        """Show the most probable classes as buttons; choose the first if no class is chosen.

        A class that was chosen stays, unless it is another one in this network.
        """
        names, before = dict(enumerate(found.class_names)), self._classes.options
        chosen = [each for each in self._classes.value or [] if names.get(each) == before[each]]
        self._classes.set_options(names, value=chosen or found.classes[:1])
        self._top.clear()
        with self._top:
            for index, probability in zip(found.classes, found.probabilities, strict=True):
                text = f"{names[index]}, {probability:.1%}"
                button = ui.button(text, on_click=functools.partial(self._choose, index))
                button.props("no-caps outline dense color=primary").classes("je-class")
                button.style(f"--share: {100 * probability:.1f}%")

    def offer_sites(self, sites: Sequence[str]) -> None:
        """Offer the sites of the network."""
        self._site.set_options(list(sites), value=sites[-1] if sites else None)

    def needs_sites(self) -> bool:
        """Whether a hidden unit is asked for before the sites are known."""
        return bool(self._hidden.value) and not self._site.options

    def _choose(self, index: int) -> None:
        self._hidden.set_value(False)
        self._classes.set_value([index])

    def _pick(self, photograph: Photograph) -> None:
        self.photograph = photograph
        self._chosen.set_text(f"Chosen: {photograph.name}")
        self._looked()

    def _show_photographs(self, samples: Sequence[Photograph]) -> None:
        with _section("Photograph"):
            with ui.row().classes("gap-2"):
                for sample in samples:
                    button = ui.button(on_click=functools.partial(self._pick, sample))
                    button.props(f'flat dense padding=none aria-label="{sample.name}"')
                    with button:
                        small = ui.image(sample.thumbnail).classes("je-small")
                        small.props(f'alt="{sample.name}" no-spinner')
            self._upload = ui.upload(
                auto_upload=True,
                max_file_size=MAX_BYTES,
                on_upload=self._uploaded,
                on_rejected=lambda: self._refused(
                    f"The file was refused: give a photograph ({', '.join(FORMATS)}) of at most "
                    f"{MAX_BYTES / 1e6:.0f} MB"
                ),
            )
            self._upload.props("accept=image/*").classes("je-upload")
            button = ui.button("Upload a photograph").props("no-caps outline")
            # In the browser: a click that goes to the server and back may not open a dialog.
            button.on("click", js_handler=f"() => getElement({self._upload.id}).pickFiles()")
            self._chosen = ui.label(f"Chosen: {self.photograph.name}")

    async def _uploaded(self, event: events.UploadEventArguments) -> None:
        try:
            data = await event.file.read()
            photograph = await asyncio.to_thread(Photograph.of, event.file.name, data)
        except ImageError as error:
            self._refused(str(error))
            return
        finally:
            self._upload.reset()
        self._pick(photograph)

    def _show_networks(self, networks: Networks) -> None:
        with _section("Network"):
            names = networks.names
            self._model = _select(names, "Network", names[0], self._another_network)
            self._other = _select([_ALONE, *names], "Compare with", _ALONE, self._changed)

    def _another_network(self) -> None:
        self._site.set_options([], value=None)
        self._hidden.set_value(False)
        self._looked()

    def _show_targets(self) -> None:
        with _section("Target"):
            self._top = ui.row().classes("gap-1")
            self._classes = ui.select(
                {},
                label="Classes: type to search",
                multiple=True,
                with_input=True,
                on_change=self._changed,
            )
            self._classes.props(f"use-chips max-values={MAX_TARGETS}").classes("je-wide")
            self._hidden = ui.switch("A hidden unit instead", on_change=self._hide)
            with ui.column().classes("je-wide gap-1") as self._unit:
                self._site = _select([], "Site", None, self._changed)
                self._channels = ui.input("Channels, such as 3, 14", value="0")
                self._channels.on("change", lambda: self._changed()).classes("je-wide")
            self._unit.set_visibility(False)

    def _hide(self) -> None:
        hidden = bool(self._hidden.value)
        self._unit.set_visibility(hidden)
        self._classes.set_visibility(not hidden)
        self._changed()

    def _show_method(self) -> None:
        with _section("Method"):
            methods = {name: name.replace("_", " ") for name in (*PULLBACKS, *METHODS)}
            self._method = _select(methods, "Method", "excitation_pullback", self._another_method)
            self._shown = _select(SHOWN, "Show", ASCENT, self._another_method)

    def _show_settings(self) -> None:
        with _section("Settings") as self._settings:
            with ui.column().classes("je-wide gap-0") as self._gates:
                self._suited = ui.switch("Temperatures that suit the network", value=True)
                self._suited.on_value_change(self._another_method)
                with ui.row().classes("je-wide items-center no-wrap"):
                    self._temperature = Slider(
                        "Temperature of all gates",
                        high=MAX_TEMPERATURE,
                        step=0.05,
                        value=1.0,
                        moved=self._show_temperature,
                        changed=self._changed,
                    )
                    self._shown_temperature = ui.label("T = 1.00").classes("je-number")
            with ui.row().classes("je-wide no-wrap") as self._ascent:
                self._steps = self._field("Steps", EXCITATION_PGA.steps, 1, MAX_STEPS)
                self._step_size = self._field("Step size", 20, 0, MAX_SIZE)
                self._radius = self._field("Radius", 100, 0, MAX_SIZE)

    def _show_temperature(self) -> None:
        self._shown_temperature.set_text(f"T = {self._temperature.value:.2f}")

    def _field(self, label: str, value: float, low: float, high: float) -> ui.number:
        number = ui.number(label, value=value, min=low, max=high).classes("col")
        number.on("change", lambda: self._changed())
        return number

    def _another_method(self, event: events.ValueChangeEventArguments[Any]) -> None:
        if event.sender is self._method:
            recipe = SEMANTIC_PGA if self._method.value == "semantic_pullback" else EXCITATION_PGA
            self._set(recipe)
        self._adapt()
        self._changed()

    def _set(self, ascent: Ascent) -> None:
        values: Any = ascent.steps, ascent.step_size, ascent.radius
        for number, value in zip((self._steps, self._step_size, self._radius), values, strict=True):
            number.set_value(value)

    def _adapt(self) -> None:
        """Show the settings that the method has."""
        method = self._method.value
        pulls, shown = method in PULLBACKS, self._shown.value
        soft = (method in PULLBACKS and method != "gradient") or METHODS[method].is_soft
        self._shown.set_visibility(pulls)
        gates, climbs = soft and not (pulls and shown == SWEEP), pulls and shown == ASCENT
        self._gates.set_visibility(gates)
        self._temperature.set_enabled(not self._suited.value)
        self._ascent.set_visibility(climbs)
        self._settings.set_visibility(gates or climbs)


def _section(title: str) -> ui.element:
    section = ui.element("section").classes("je-section")
    with section, ui.element("h2"):
        ui.label(title)
    return section


def _select(options: Any, label: str, value: Any, on_change: Callable[..., Any]) -> ui.select:
    return ui.select(options, label=label, value=value, on_change=on_change).classes("je-wide")


def _channels(text: str | None) -> tuple[int, ...]:
    words = [word.strip() for word in (text or "").split(",")]
    if not all(word.isdecimal() and len(word) < 7 for word in words):
        raise ExciteError(f"the channels are {text!r}: give numbers, separated by commas")
    return tuple(map(int, words))


def _number(value: float | None) -> float:
    """The number in a field; raises `ExciteError` if it is empty."""
    if value is None:
        raise ExciteError("a field for a number is empty: give the steps and the step size")
    return value
