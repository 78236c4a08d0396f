"""The documentation site, built as `make docs` builds it: a broken link ends the build."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from mkdocs.exceptions import PluginError

import jax_excite
from jax_excite import attributions, metrics, recipes, theory

ROOT = Path(__file__).parents[2]
NAMES = [
    *(
        f"{getattr(module, name).__module__}.{getattr(module, name).__name__}"
        for module in (jax_excite, attributions, metrics, theory)
        for name in module.__all__
        if name != "recipes"
    ),
    *(f"jax_excite.recipes.{name}" for name in vars(recipes) if name.isupper()),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return folder


def test_the_reference_has_every_public_name(site):
    pages = "".join(path.read_text() for path in (site / "api").rglob("*.html"))
    anchors = set(re.findall(r'id="([^"]+)"', pages))
    assert sorted(set(NAMES) - anchors) == []


def test_pages_load_nothing_from_another_host(site):
    loaded = r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(https?:)?//([^/"]+)'
    for path in site.rglob("*.html"):
        assert re.findall(loaded, path.read_text()) == [], path


def test_every_page_is_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text()
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    assert [str(page) for page in pages if f": {page}\n" not in menu] == []


@pytest.fixture(scope="module")
def hook():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.on_page_markdown


@pytest.mark.parametrize(
    ("markdown", "address", "wanted"),
    [
        ("[`gating`](../jax_excite/gating.py) x", None, "`gating` x"),
        (
            "[a](../README.md#use-it)",
            "https://host/us/",
            "[a](https://host/us/blob/main/README.md#use-it)",
        ),
        ("[a](method.md) ![b](../docs/demo.jpg)", None, "[a](method.md) ![b](../docs/demo.jpg)"),
        ("[a](https://host/x) [b](#there)", None, "[a](https://host/x) [b](#there)"),
    ],
)
def test_links_out_of_the_site(hook, markdown, address, wanted):
    file = SimpleNamespace(abs_src_path=str(ROOT / "docs" / "page.md"), src_path="page.md")
    options = {"page": SimpleNamespace(file=file), "config": SimpleNamespace(repo_url=address)}
    assert hook(markdown, **options) == wanted
    with pytest.raises(PluginError, match=r"page\.md links to \.\./missing\.py"):
        hook("[a](../missing.py)", **options)
