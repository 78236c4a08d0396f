"""Draws the pictures of docs/app.md in Chromium: `python -m experiments.app_pictures`."""

import tempfile
from pathlib import Path

import typer
from playwright.sync_api import Page, expect

from tests.served import CHROMIUM, add_class, chromium, open_page, served

OUT = Path(__file__).parents[1] / "docs" / "app"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
_FADED = 800  # milliseconds until nothing moves


def main(out: Path = OUT) -> None:
    """Write the pictures to a folder."""
    if CHROMIUM is None:
        raise typer.BadParameter("there is no Chromium on this machine")
    out.mkdir(exist_ok=True)
    expect.set_options(timeout=120_000)
    with tempfile.TemporaryDirectory() as cache, served(Path(cache)) as page, chromium() as browser:
        with browser.new_page(viewport=DESKTOP) as visit:  # pyright: ignore[reportArgumentType]
            open_page(visit, page.address)
            add_class(visit, "church")
            visit.keyboard.press("Escape")
            _explain(visit)
            visit.get_by_role("button", name="difference", exact=True).click()
            expect(visit.get_by_role("img", name="difference for church, by")).to_be_visible()
            visit.wait_for_timeout(_FADED)
            visit.screenshot(path=out / "ascents.png", full_page=True)
        with browser.new_page(viewport=DESKTOP, color_scheme="dark") as visit:  # pyright: ignore[reportArgumentType]
            open_page(visit, page.address)
            visit.get_by_role("combobox", name="Show").click()
            visit.get_by_role("option", name="the map at several temperatures").click()
            _explain(visit)
            visit.get_by_role("button", name="map for T = 1", exact=False).first.click()
            expect(visit.get_by_text("Map: T = 1")).to_be_visible()
            visit.wait_for_timeout(_FADED)
            visit.screenshot(path=out / "sweep.png", full_page=True)
        with browser.new_page(viewport=PHONE) as visit:  # pyright: ignore[reportArgumentType]
            open_page(visit, page.address)
            visit.wait_for_timeout(_FADED)
            visit.screenshot(path=out / "phone-form.png")
            _explain(visit)
            visit.locator(".je-answers").evaluate("element => element.scrollIntoView()")
            visit.wait_for_timeout(_FADED)
            visit.screenshot(path=out / "phone-results.png")


def _explain(page: Page) -> None:
    page.get_by_role("button", name="Explain").click()
    expect(page.get_by_role("status")).to_contain_text("Done")


if __name__ == "__main__":
    typer.run(main)
