"""The page of `jax-excite app` in a real browser."""

import base64
import contextlib
import io
import json
import re
import time
import zipfile

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect

from tests.served import CHROMIUM, READY, add_class, chromium, open_page, served
from tests.unit.test_app import black_png, encoded
from tests.unit.test_cli_networks import network

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
SECONDS = 180  # for what takes a few on a quiet machine
expect.set_options(timeout=1000 * SECONDS)
LITE0 = "efficientnet_lite0"
# Close the connection, and connect again after ten seconds.
INTERRUPT = """() => {
    const manager = window.socket.io;
    manager.randomizationFactor(0);
    manager.reconnectionDelayMax(10000);
    manager.reconnectionDelay(10000);
    manager.engine.close();
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def address(folder):
    (folder / "names.txt").write_text("cat\ndog\ncup\n")
    other = network(folder).rename(folder / "other.onnx")
    options = ("--classes-file", folder / "names.txt", "--preprocessing", "signed")
    with served(folder, "--model", network(folder), "--model", other, *options) as found:
        yield found.address


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@contextlib.contextmanager
def visitor(browser, address, **options):
    """A page of somebody, who loads nothing from another host and sees no error of scripts."""
    requests, problems = [], []
    with browser.new_context(**options) as context:
        context.set_default_timeout(1000 * SECONDS)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: m.type == "error" and problems.append(m.text))
        open_page(page, address)
        yield page
    assert all(url.startswith((address, "data:", "blob:")) for url in requests), requests
    assert problems == []


@pytest.fixture
def page(browser, address):
    with visitor(browser, address) as page:
        yield page


def choose(page, label, option):
    page.get_by_role("combobox", name=label).click()
    page.get_by_role("option", name=option, exact=True).click()
    page.keyboard.press("Escape")


def answered(page, before=None):
    """Wait until an answer is complete whose large picture is another than before."""
    page.wait_for_function(
        """before => {
            const picture = document.querySelector('.je-above');
            const state = document.querySelector('[role=status]').textContent;
            return picture && picture.src && picture.src !== before && state.startsWith('Done');
        }""",
        arg=before,
    )


def large(page):
    return page.locator(".je-above").get_attribute("src")


def explain(page):
    before = large(page) if page.locator(".je-above").count() else None
    page.get_by_role("button", name="Explain").click()
    answered(page, before)


def seconds(call):
    started = time.monotonic()
    call()
    return time.monotonic() - started


def pixels(url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))))


def upload(page, name, data, kind="image/png"):
    file = {"name": name, "mimeType": kind, "buffer": data}
    page.locator("input[type=file]").set_input_files(file)


def accessible(page, what):
    found = Axe().run(page).response["violations"]
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    assert serious == [], (what, json.dumps(serious, indent=1)[:3000])


def test_explore_the_default_network(page, tmp_path):
    """Load, choose, search among 1,000 classes, run, look at the cells, download."""
    choose(page, "Network", LITE0)
    button = page.get_by_role("button", name=re.compile("^tiger cat, "))
    expect(button).to_be_visible()
    page.get_by_label("Classes: type to search").fill("chur")
    page.get_by_role("option", name="church", exact=True).click()
    page.keyboard.press("Escape")
    page.get_by_role("spinbutton", name="Steps").fill("3")
    explain(page)
    chart = page.get_by_role("img", name="Probability of each class")
    described = chart.get_attribute("aria-label")
    found = re.findall(r"(tiger cat|church): from (\S+) to (\S+) after 3 steps", described)
    assert [name for name, *_ in found] == ["tiger cat", "church"], described
    assert float(found[1][1]) < float(found[1][2])
    page.get_by_role("button", name="perturbed for church").click()
    expect(page.get_by_text("Perturbed: church")).to_be_visible()
    before = large(page)
    page.get_by_role("button", name="heat map").click()
    expect(page.get_by_role("img", name="heat map for church, by")).to_be_visible()
    assert large(page) != before
    page.get_by_role("slider", name="How much the photograph covers").press("End")
    expect(page.locator(".je-above")).to_have_css("clip-path", re.compile("100%"))
    accessible(page, "results")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    with zipfile.ZipFile(download.value.path()) as whole:
        assert set(whole.namelist()) == {
            *("arrays.npz", "manifest.json", "photograph.png", "picture.png")
        }
        manifest = json.loads(whole.read("manifest.json"))
        arrays = np.load(io.BytesIO(whole.read("arrays.npz")))
    assert [each["name"] for each in manifest["classes"]] == ["tiger cat", "church"]
    assert arrays["perturbed"].shape == (1, 2, 224, 224, 3)
    button.click()  # a prediction is a target, and another target is answered at once
    answered(page, large(page))
    expect(page.locator(".je-thumbnails")).to_have_count(0)
    expect(page.get_by_text("Heat map: tiger cat")).to_be_visible()  # the view is kept


def test_another_temperature_compiles_nothing(page, folder):
    choose(page, "Show", "the map")
    explain(page)
    programs = len(list((folder / "cache").rglob("*")))
    before = large(page)
    page.get_by_role("switch", name="Temperatures that suit").click()
    answered(page, before)
    for key in ("Home", "End"):
        before = large(page)
        page.get_by_role("slider", name="Temperature of all gates").press(key)
        answered(page, before)
    assert len(list((folder / "cache").rglob("*"))) == programs


def test_another_number_of_steps_compiles_nothing(page, folder):
    explain(page)
    programs = len(list((folder / "cache").rglob("*")))
    before = large(page)
    page.get_by_role("spinbutton", name="Steps").fill("7")
    page.get_by_role("spinbutton", name="Steps").blur()
    answered(page, before)
    assert len(list((folder / "cache").rglob("*"))) == programs


def test_a_hidden_unit(page):
    page.get_by_role("switch", name="A hidden unit").click()
    expect(page.get_by_role("status")).to_have_text(
        "Choose a site and channels, and press Explain."
    )
    page.get_by_label("Channels").fill("3, 1")
    explain(page)
    chart = page.get_by_role("img", name="Activation of each channel")
    assert "channel 3: from" in chart.get_attribute("aria-label")
    accessible(page, "hidden unit")
    page.get_by_label("Channels").fill("99")
    page.get_by_label("Channels").blur()
    expect(page.get_by_role("alert")).to_contain_text("99")
    page.get_by_label("Channels").fill("three")
    page.get_by_label("Channels").blur()
    expect(page.get_by_role("alert")).to_contain_text("give numbers, separated by commas")


def test_maps_of_other_methods(page):
    choose(page, "Method", "integrated gradients 16")
    explain(page)
    expect(page.get_by_role("img", name="map for ")).to_be_visible()
    assert not page.get_by_role("spinbutton", name="Steps").is_visible()
    choose(page, "Method", "semantic pullback")
    answered(page, large(page))
    expect(page.get_by_role("spinbutton", name="Steps")).to_have_value("5")
    expect(page.get_by_role("spinbutton", name="Radius")).to_have_value("")


def test_a_sweep_of_temperatures(page):
    choose(page, "Show", "the map at several temperatures")
    explain(page)
    names = page.locator(".je-thumbnails .je-name").all_inner_texts()
    assert names[0] == "T = 0"
    assert names[-1] == "T = inf"
    page.get_by_role("button", name="map for T = 0.6").click()
    expect(page.get_by_text("Map: T = 0.6")).to_be_visible()
    before = large(page)
    page.get_by_role("button", name="Scale all pictures alike").click()
    page.wait_for_function("b => document.querySelector('.je-above').src !== b", arg=before)


def test_two_networks_side_by_side(page):
    choose(page, "Compare with", page.get_by_role("combobox", name="Network").input_value())
    explain(page)
    assert page.locator(".je-answer").count() == 1  # with itself is no comparison
    page.get_by_role("combobox", name="Compare with").click()
    page.get_by_role("option", name="other.onnx").click()
    expect(page.locator(".je-answer")).to_have_count(2)
    page.get_by_role("button", name="Cancel").wait_for()
    expect(page.get_by_role("status")).to_contain_text("Done")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    with zipfile.ZipFile(download.value.path()) as whole:
        assert {name.split("/")[0] for name in whole.namelist()} == {"small.onnx", "other.onnx"}


BAD = {
    "not an image": (b"<html>", "cannot be read as an image"),
    "a bomb": (black_png(20_000, 20_000), "decompression bomb"),
    "60 million pixels": (black_png(10_000, 6_000), "has 10000 x 6000 pixels"),
    "cut off": (encoded()[:-40], "cannot be read as an image"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_upload_is_named_and_changes_nothing(page, name):
    data, message = BAD[name]
    upload(page, "mine.png", data)
    expect(page.get_by_role("alert")).to_contain_text(message)
    expect(page.get_by_role("alert")).to_contain_text("mine.png")
    expect(page.get_by_text("Chosen: chelsea")).to_be_visible()
    explain(page)
    expect(page.locator(".je-alert")).to_have_text("")


def test_a_file_that_the_browser_refuses(page):
    upload(page, "large.png", bytes(21_000_000))
    expect(page.get_by_role("alert")).to_contain_text("The file was refused: give a photograph")


def test_a_polyglot_is_shown_as_pixels(page):
    upload(page, "a.gif", encoded("GIF") + b"<script>alert(1)</script>", "image/gif")
    expect(page.get_by_text("Chosen: a.gif")).to_be_visible()
    expect(page.get_by_role("status")).to_have_text(READY)
    explain(page)
    assert page.locator(".je-stage img").first.get_attribute("src").startswith("data:image/png")


def test_a_name_with_separators(page, address):
    """A browser sends the last part of a name; others may send anything."""
    with page.expect_request(re.compile("/upload/")) as sent:
        upload(page, "mine.png", encoded())
    expect(page.get_by_text("Chosen: mine.png")).to_be_visible()
    file = {"file": ("../../../tmp/evil.png", encoded("PNG", (9, 9)), "image/png")}
    assert httpx.post(sent.value.url, files=file).status_code == 200
    expect(page.get_by_text("Chosen: evil.png")).to_be_visible()
    answer = httpx.post(sent.value.url, files={"file": ("a.png", bytes(22_000_000), "image/png")})
    assert answer.status_code == 413
    assert httpx.get(address, headers={"Host": "evil.example"}).status_code == 400


def test_reloading_or_cancelling_stops_the_computation(page, browser, address):
    """Nine ascents of 50 steps would take half a minute."""

    def begin():
        choose(page, "Network", LITE0)
        expect(page.get_by_role("button", name=re.compile("^tiger cat, "))).to_be_visible()
        for name in ("church", "espresso", "ostrich", "golf ball", "tench", "goldfish"):
            add_class(page, name)
        page.keyboard.press("Escape")
        page.get_by_role("spinbutton", name="Steps").fill("50")
        page.get_by_role("button", name="Explain").click()
        expect(page.get_by_role("status")).to_contain_text(re.compile("step [1-9]"))

    with visitor(browser, address) as other:
        alone = seconds(lambda: explain(other))
        begin()
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_role("status")).to_have_text("Cancelled.")
        other.get_by_role("spinbutton", name="Steps").fill("9")
        assert seconds(lambda: explain(other)) < 5 * alone + 5
    page.get_by_role("button", name="Explain").click()
    expect(page.get_by_role("status")).to_contain_text(re.compile("step [1-9]"))
    page.reload()
    expect(page.get_by_role("status")).to_have_text(READY)
    assert seconds(lambda: explain(page)) < 5 * alone + 5


def test_an_interrupted_connection_loses_nothing(page):
    """A laptop sleeps, or the network changes: what was shown and what was asked for is kept."""
    upload(page, "mine.png", encoded())
    expect(page.get_by_text("Chosen: mine.png")).to_be_visible()
    explain(page)
    page.get_by_role("button", name="perturbed", exact=True).click()
    page.get_by_role("spinbutton", name="Steps").fill("7")
    page.get_by_role("button", name="Explain").click()
    page.evaluate(INTERRUPT)
    expect(page.locator("#popup")).to_have_attribute("aria-hidden", "false")
    expect(page.locator("#popup")).to_have_attribute("aria-hidden", "true")
    expect(page.get_by_role("status")).to_contain_text("Done")
    expect(page.get_by_text("Chosen: mine.png")).to_be_visible()
    expect(page.get_by_role("img", name="Probability of each class")).to_have_attribute(
        "aria-label", re.compile("after 7 steps")
    )


def test_twenty_people_are_answered_in_turn(browser, address):
    """Each sees the own photograph."""
    with contextlib.ExitStack() as stack:
        pages = [stack.enter_context(visitor(browser, address)) for _ in range(20)]
        colours = [(12 * n, 255 - 12 * n, 40 + 8 * n) for n in range(20)]
        for page, colour in zip(pages, colours, strict=True):
            upload(page, "mine.png", encoded("PNG", (16, 16), colour))
        for page in pages:
            expect(page.get_by_text("Chosen: mine.png")).to_be_visible()
            expect(page.get_by_role("status")).to_have_text(READY)
        for page in pages:
            page.get_by_role("button", name="Explain").click()
        for page, colour in zip(pages, colours, strict=True):
            answered(page)
            original = pixels(page.locator(".je-stage img").first.get_attribute("src"))
            assert np.abs(original.astype(int) - colour).max() <= 1


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_can_be_used_by_everybody(browser, address, dark, width):
    """axe finds nothing serious, nothing is wider than the page, and the keyboard is enough."""
    options = {
        "color_scheme": "dark" if dark else "light",
        "viewport": {"width": width, "height": 800},
    }
    with visitor(browser, address, **options) as page:
        accessible(page, "at the start")
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.textContent").strip() == "Explain":
                break
        page.keyboard.press("Enter")
        answered(page)
        accessible(page, "with results")
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width
        ink = page.evaluate("getComputedStyle(document.body).color")
        assert (sum(map(int, re.findall(r"\d+", ink)[:3])) > 400) == dark
        unnamed = page.locator("img:not([alt]), img[alt='']").count()
        assert unnamed == 0
