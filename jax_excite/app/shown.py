"""The pictures of an answer on the page: one view for each network."""

import asyncio
from collections.abc import Sequence
from typing import Any

from nicegui import ui

from jax_excite.app.answer import Part, data_url, view, view_names
from jax_excite.app.slider import Slider
from jax_excite.cli.preview import Arrays
from jax_excite.cli.runs import Run

_GREY = "#7a7a7a"  # readable on light and on dark
_MODES = {"cell": "Scale each picture by itself", "row": "Scale all pictures alike"}


class Shown:
    """The results of one network: one large picture over the photograph, and all in small.

    Args:
        model: the name of the network.
        run: what is computed.
        before: the results that these replace, whose view is kept.
    """

    def __init__(self, model: str, run: Run, before: "Shown | None" = None):
        self._model, self._run, self._titles = model, run, run.column_titles()
        self._column, self._followed = 0, True
        self._arrays: Arrays | None = None
        self._curves: Sequence[Sequence[float]] = ()
        with ui.element("section").classes("je-section je-answer"):
            with ui.element("h2"):
                ui.label(model)
            self._caption = ui.label()
            with ui.element("div").classes("je-stage"):
                self._below = picture("the photograph")
                self._above = picture("the result").classes("je-above")
            self._cover = Slider(
                "How much the photograph covers, in percent",
                high=100,
                step=1,
                value=0,
                moved=self._wipe,
            )
            names = view_names(run)
            view = before.view if before is not None and before.view in names else names[1]
            scaling = "cell" if before is None else before.scaling
            self._view = ui.toggle(names, value=view, on_change=self._redraw)
            self._scaling = ui.toggle(_MODES, value=scaling, on_change=self._redraw)
            for toggle in (self._view, self._scaling):
                toggle.props("no-caps dense")
            self._scaling.set_visibility(len(self._titles) > 1)
            self._small = self._thumbnails()
            self._chart = _chart(self._titles, run) if run.ascent is not None else None

    @property
    def view(self) -> str:
        """The name of the picture that is shown."""
        return self._view.value or ""

    @property
    def scaling(self) -> Any:
        """Which pictures share one range."""
        return self._scaling.value

    async def show(self, part: Part) -> None:
        """Show a part of the answer."""
        if self._arrays is None:
            self._arrays = part.progress.arrays
            await self._set(self._below, 0, "original", f"the photograph, for {self._model}")
        if self._followed:
            self._column = part.progress.column
        self._curves = part.curves
        await self._draw([part.progress.column])
        self._plot()

    async def finish(self) -> None:
        """Show all pictures of the complete answer."""
        await self._draw(range(len(self._titles)))
        self._plot()

    async def _redraw(self) -> None:
        if self._arrays is not None:
            await self._draw(range(len(self._titles)))

    async def _draw(self, columns: Sequence[int]) -> None:
        """Draw the large picture, and the small ones of some columns."""
        shown, title = self.view, self._titles[self._column]
        self._caption.set_text(f"{shown.capitalize()}: {title}")
        text = f"{shown} for {title}, by {self._model}"
        await self._set(self._above, self._column, shown, text)
        for column in columns if self._small else ():
            text = f"{shown} for {self._titles[column]}"
            await self._set(self._small[column], column, shown, text)

    async def _set(self, image: ui.element, column: int, name: str, alt: str) -> None:
        """Draw a picture of a cell, outside of the event loop."""
        assert self._arrays is not None

        def drawn(arrays: Arrays) -> str:
            return data_url(view(arrays, column, name, self.scaling))

        image.props["src"] = await asyncio.to_thread(drawn, self._arrays)
        image.props["alt"] = alt
        image.update()

    def _thumbnails(self) -> list[ui.element]:
        if len(self._titles) < 2:
            return []
        found = []
        with ui.row().classes("je-thumbnails"):
            for column, title in enumerate(self._titles):
                button = ui.button(on_click=lambda _, column=column: self._choose(column))
                button.props("flat dense no-caps padding=none stack")
                with button:
                    found.append(picture(f"nothing yet for {title}").classes("je-small"))
                    ui.label(title).classes("je-name")
        return found

    async def _choose(self, column: int) -> None:
        self._column, self._followed = column, False
        await self._redraw()

    def _wipe(self) -> None:
        self._above.style(f"clip-path: inset(0 0 0 {self._cover.value}%)")

    def _plot(self) -> None:
        if self._chart is None:
            return
        for series, curve in zip(self._chart.options["series"], self._curves, strict=True):
            series["data"] = [float(f"{value:.4g}") for value in curve]
        self._chart.update()
        ends = [
            f"{title}: from {curve[0]:.3g} to {curve[-1]:.3g} after {len(curve) - 1} steps"
            for title, curve in zip(self._titles, self._curves, strict=True)
            if curve
        ]
        self._chart.props["aria-label"] = f"{_what(self._run)}. {'; '.join(ends)}"


def picture(alt: str) -> ui.element:
    """An image with a text alternative, without content yet."""
    image = ui.element("img")
    image.props["alt"] = alt
    return image


def _what(run: Run) -> str:
    return "Probability of each class" if run.columns.at is None else "Activation of each channel"


def _chart(titles: Sequence[str], run: Run) -> ui.echart:
    """A plot of a curve for each column over the steps of an ascent."""
    assert run.ascent is not None
    range_of: dict[str, Any] = {"min": 0, "max": 1} if run.columns.at is None else {}
    options = {
        "animation": False,
        "textStyle": {"color": _GREY},
        "legend": {"type": "scroll", "top": 0, "textStyle": {"color": _GREY}},
        "grid": {"left": 48, "right": 16, "top": 64, "bottom": 40},
        "xAxis": {
            "type": "category",
            "name": "step",
            "nameLocation": "middle",
            "nameGap": 26,
            "data": list(range(run.ascent.steps + 1)),
        },
        "yAxis": {
            "type": "value",
            "name": _what(run),
            "nameTextStyle": {"align": "left"},
            **range_of,
        },
        "series": [{"name": title, "type": "line", "data": []} for title in titles],
    }
    chart = ui.echart(options).classes("je-chart")
    chart.props["role"] = "img"
    chart.props["aria-label"] = _what(run)
    return chart
