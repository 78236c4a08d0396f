"""A slider: the browser's own, which the keyboard and screen readers can use."""

from collections.abc import Callable
from typing import Any

from nicegui import ui

_EMIT = "event => emit(event.target.valueAsNumber)"


class Slider(ui.element):
    """A slider with a label for screen readers.

    Args:
        label: what it sets.
        high: the greatest value; the least is 0.
        step: the distance between values.
        value: the value at first.
        moved: called while it is moved.
        changed: called when it has been moved.
    """

    def __init__(
        self,
        label: str,
        *,
        high: float,
        step: float,
        value: float,
        moved: Callable[[], Any] = lambda: None,
        changed: Callable[[], Any] = lambda: None,
    ):
        super().__init__("input")
        self.value = value
        self._high, self._moved, self._changed = high, moved, changed
        settings = {"type": "range", "min": 0, "max": high, "step": step, "value": value}
        self.props.update({**settings, "aria-label": label})
        self.classes("je-slider")
        self.on("input", lambda event: self._take(event.args, self._moved), js_handler=_EMIT)
        self.on("change", lambda event: self._take(event.args, self._changed), js_handler=_EMIT)

    def set_enabled(self, enabled: bool) -> None:
        """Let people move it, or not."""
        self.props.set_bool("disabled", not enabled)
        self.update()

    def _take(self, value: Any, then: Callable[[], Any]) -> Any:
        """Take a value from the browser, which may send anything."""
        if isinstance(value, (int, float)) and 0 <= value <= self._high:
            self.value = float(value)
            self.props["value"] = self.value
            return then()
        return None
