"""The page of `jax-excite app` in Chromium: its first answers, and its memory.

    python -m benchmarks.page

A server starts with an empty folder of compiled programs (*cold*), and once more with the folder
that this has filled (*warm*). For each, the time is that from the click on "Explain" to the first
picture and to the last step of ten, of one class and of six. Then the memory of the server is read
while it answers many questions in a row.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from playwright.sync_api import Page, expect

from benchmarks.workers import ROOT
from tests.served import CHROMIUM, Served, add_class, chromium, open_page, served

CLASSES = "church", "espresso", "ostrich", "golf ball", "tench"
HEAD = [
    "| model | | page ready, s | first picture, s | ten steps, s | six classes: first picture, s | "
    "six classes, s |",
    "|---|---|---|---|---|---|---|",
]
_LIMIT = 300_000


def main(
    model: Annotated[str, typer.Option(help="The network.")] = "efficientnet_lite0",
    rounds: Annotated[int, typer.Option(min=1, help="How often both servers are started.")] = 3,
    runs: Annotated[int, typer.Option(min=0, help="Questions in a row.")] = 200,
    out: Annotated[Path, typer.Option(help="The table to write.")] = (
        ROOT / "benchmarks" / "results" / "page.md"
    ),
) -> None:
    """Print and write the table."""
    if CHROMIUM is None:
        raise typer.BadParameter("there is no Chromium on this machine")
    expect.set_options(timeout=_LIMIT)
    found: dict[str, list[list[float]]] = {"cold": [], "warm": []}
    lines: list[str] = []
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for side, times in found.items():
                with served(Path(folder), "--model", model) as page:
                    times.append(answers(page))
                    if number == rounds - 1 and side == "warm" and runs:
                        lines = growth(page, runs)
    rows = []
    for side, times in found.items():
        medians = [f"{statistics.median(column):.1f}" for column in zip(*times, strict=True)]
        rows.append("| " + " | ".join([model, side, *medians]) + " |")
    out.write_text("\n".join([*HEAD, *rows, "", *lines]) + "\n")
    typer.echo(out.read_text())


def answers(served: Served) -> list[float]:
    """Seconds until the page is ready, and from clicks to pictures."""
    with chromium() as browser, browser.new_page() as page:
        page.set_default_timeout(_LIMIT)
        begun = time.monotonic()
        open_page(page, served.address)
        found = [time.monotonic() - begun, *explained(page)]
        for name in CLASSES:
            add_class(page, name)
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Cancel").click()
        return [*found, *explained(page)]


def explained(page: Page) -> tuple[float, float]:
    """Seconds from the click to the first picture, and to the complete answer."""
    state = page.get_by_role("status")
    shown = page.locator(".je-above")
    before = shown.get_attribute("src") if shown.count() else None
    begun = time.monotonic()
    page.get_by_role("button", name="Explain").click()
    page.wait_for_function(
        "b => { const p = document.querySelector('.je-above'); return p && p.src && p.src !== b }",
        arg=before,
    )
    first = time.monotonic() - begun
    expect(state).to_contain_text("Done")
    return first, time.monotonic() - begun


def growth(served: Served, runs: int) -> list[str]:
    """The server's memory while it answers questions, a tenth of them at a time."""
    with chromium() as browser, browser.new_page() as page:
        page.set_default_timeout(_LIMIT)
        page.goto(served.address)
        buttons = page.locator(".je-class")
        expect(buttons).to_have_count(5)
        page.get_by_role("spinbutton", name="Steps").fill("2")
        page.get_by_role("button", name="Explain").click()
        expect(page.get_by_role("status")).to_contain_text("Done")
        megabytes = [_resident(served.process)]
        for run in range(1, runs + 1):
            name = buttons.nth(run % 5).inner_text().split(",")[0]
            buttons.nth(run % 5).click()
            expect(page.get_by_role("img", name=f"perturbed for {name}, by")).to_be_visible()
            expect(page.get_by_role("status")).to_contain_text("Done")
            if run % max(runs // 10, 1) == 0:
                megabytes.append(_resident(served.process))
    listed = ", ".join(f"{value:.0f}" for value in megabytes)
    return [f"Memory of the server after each tenth of {runs} answers, MB: {listed}"]


def _resident(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    typer.run(main)
