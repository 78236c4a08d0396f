"""The page: its layout, and what happens when people use it."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nicegui import background_tasks, ui

from jax_excite.app.answer import (
    Answer,
    Doing,
    Part,
    Predicted,
    Sites,
    archive,
    explain,
    name_sites,
    predict,
)
from jax_excite.app.controls import Controls
from jax_excite.app.networks import Networks
from jax_excite.app.photograph import Photograph
from jax_excite.app.shown import Shown
from jax_excite.app.turns import Job, Turns, Waiting
from jax_excite.errors import ExciteError

STYLE = Path(__file__).with_name("page.css").read_text("utf-8")
_TELL_OF_LEAVING = "<script>addEventListener('pagehide', () => emitEvent('leave'))</script>"
_BLUE = "#1565c0"
_SECONDS_TO_CHANGE_MORE = 0.4
_SECONDS_BETWEEN_PICTURES = 0.25
_log = logging.getLogger(__name__)


class Page:
    """The page of one person, from when it is opened until it is closed.

    Args:
        networks: the networks that are offered.
        turns: the line in which all people wait.
        samples: photographs to pick from.
        compiled: the programs that have been compiled.
    """

    def __init__(
        self, networks: Networks, turns: Turns, samples: Sequence[Photograph], compiled: set[Any]
    ):
        self._networks, self._turns, self._compiled = networks, turns, compiled
        self._task: asyncio.Task[None] | None = None
        self._job: Job | None = None
        self._answer: Answer | None = None
        self._asked = False
        self._shown: dict[int, Shown] = {}
        ui.add_css(STYLE)
        ui.colors(primary=_BLUE)
        self._mode: Any = ui.dark_mode(None)
        self._show_header()
        with ui.element("div").classes("je-main"):
            with ui.element("form").props('onsubmit="return false"').classes("je-form"):
                self._controls = Controls(
                    networks,
                    samples,
                    changed=self._change,
                    looked=self._look,
                    refused=self._refuse,
                )
            with ui.element("div").classes("je-results"):
                self._show_state()
                self._results = ui.element("div").classes("je-answers")
        ui.add_body_html(_TELL_OF_LEAVING)
        ui.on("leave", self._give_up)
        ui.context.client.on_delete(self._stop)
        self._look()

    def _show_header(self) -> None:
        with ui.element("header").classes("je-header"):
            with ui.element("h1"):
                ui.label("Why does the network say so?")
            modes = {"Auto": None, "Light": False, "Dark": True}
            toggle = ui.toggle(list(modes), value="Auto").props("dense no-caps")
            toggle.on_value_change(lambda event: self._mode.set_value(modes[event.value]))

    def _show_state(self) -> None:
        with ui.row().classes("je-actions"):
            self._explain = ui.button("Explain", on_click=lambda: self._ask()).props("no-caps")
            self._cancel = ui.button("Cancel", on_click=self._give_up).props("no-caps outline")
            self._download = ui.button("Download", on_click=self._save).props("no-caps outline")
        self._cancel.disable()
        self._download.disable()
        self._state = ui.label().props("role=status").classes("je-state")
        self._alert = ui.label().props("role=alert").classes("je-alert")

    def _refuse(self, message: str) -> None:
        self._state.set_text("")
        self._alert.set_text(message)

    def _say(self, message: str) -> None:
        self._alert.set_text("")
        self._state.set_text(message)

    def _stop(self) -> None:
        """Cancel what is being computed or waited for."""
        if self._task is not None:
            self._task.cancel()
        if self._job is not None:
            self._turns.leave(self._job)
        self._task = self._job = None

    def _give_up(self) -> None:
        self._stop()
        self._cancel.disable()
        self._say("Cancelled.")

    def _begin(self, work: Callable[[], Iterator[Any]], wait: float = 0) -> None:
        """Compute something in place of what is being computed."""
        self._stop()
        self._cancel.enable()
        self._task = background_tasks.create(self._follow(work, wait))

    async def _follow(self, work: Callable[[], Iterator[Any]], wait: float) -> None:
        await asyncio.sleep(wait)
        self._begun = time.monotonic()
        job = self._job = self._turns.ask(work)
        shown: dict[int, Shown] = {}
        due = 0.0
        try:
            async for event in job.events():
                if isinstance(event, Part) and event.number in shown:
                    if job.is_behind or time.monotonic() < due:
                        continue
                    due = time.monotonic() + _SECONDS_BETWEEN_PICTURES
                await self._take(event, shown)
        except ExciteError as error:
            self._refuse(str(error))
        except Exception:
            _log.exception("an answer failed")
            self._refuse("Something is wrong with this program: its log has the details.")
        self._cancel.disable()

    async def _take(self, event: Any, shown: dict[int, Shown]) -> None:
        """Show an event of the job."""
        match event:
            case Waiting(ahead):
                self._say(
                    f"Waiting: {ahead} {'person is' if ahead == 1 else 'people are'} before you"
                )
            case Doing(text):
                self._say(f"{text} ...")
            case Predicted():
                self._controls.predicted(event)
                self._say("Choose a target, and press Explain.")
                if self._asked:
                    self._ask()
            case Sites(names):
                self._controls.offer_sites(names)
                self._say("Choose a site and channels, and press Explain.")
            case Part():
                await self._show(event, shown)
            case Answer():
                self._answer = event
                self._download.enable()
                for each in shown.values():
                    await each.finish()
                self._say(f"Done in {time.monotonic() - self._begun:.1f} s.")
            case bytes():
                with self._results:
                    ui.download.content(event, "jax-excite.zip")
                self._say("The files are in jax-excite.zip.")

    async def _show(self, part: Part, shown: dict[int, Shown]) -> None:
        if not shown:
            self._results.clear()
        if part.number not in shown:
            with self._results:
                before = self._shown.get(part.number)
                new = Shown(part.model, part.run, before)
                shown[part.number] = self._shown[part.number] = new
        await shown[part.number].show(part)
        steps = f", step {part.progress.step}" if part.run.ascent is not None else ""
        title = part.run.column_titles()[part.progress.column]
        self._say(f"{part.model}: {title}{steps}")

    def _look(self) -> None:
        """Predict the classes of another photograph, or by another network."""
        question = self._controls.prediction()
        self._begin(lambda: predict(self._networks, question, self._compiled))

    def _ask(self, wait: float = 0) -> None:
        """Explain what the form asks for."""
        self._asked = True
        self._answer = None
        self._download.disable()
        try:
            question = self._controls.question()
        except ExciteError as error:
            self._stop()
            self._cancel.disable()
            self._refuse(str(error))
            return
        self._begin(lambda: explain(self._networks, question, self._compiled), wait)

    def _change(self) -> None:
        """Answer anew, if there was an answer: several changes at once lead to one answer."""
        if self._controls.needs_sites():
            model = self._controls.model
            self._begin(lambda: name_sites(self._networks, model))
        elif self._asked:
            self._ask(_SECONDS_TO_CHANGE_MORE)

    def _save(self) -> None:
        answer = self._answer
        if answer is not None:
            self._say("Writing the files ...")
            self._begin(lambda: iter([archive(answer)]))
