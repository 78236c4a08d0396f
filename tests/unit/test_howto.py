"""Every page of docs/howto, and others with snippets: these run, one after the other."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jax_excite as je

# With it, torchvision can be imported, which zennit does.
import tests.listings  # noqa: F401
from tests.networks import Network, images
from tests.snippets import run_snippets

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted((DOCS / "howto").glob("*.md"))


@pytest.mark.parametrize(
    "page",
    [*PAGES, DOCS / "smooth-gates.md", DOCS / "index.md", DOCS / "coming-from.md"],
    ids=lambda page: page.stem,
)
# PyTorch's exporter and Keras warn of what is theirs to mend.
@pytest.mark.filterwarnings("ignore")
def test_the_snippets_of(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_snippets(page)


@pytest.mark.parametrize("name", ["attributions", "metrics", "calibration"])
def test_the_snippets_with_a_small_network(name, tmp_path, monkeypatch):
    """They are about functions, whichever network `load` gives."""
    network = Network(classes=1000)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(je, "load", lambda name: network)
    Image.fromarray(np.full((240, 240, 3), 90, np.uint8)).save("photo.jpg")
    batches = [images(2)]
    found = run_snippets(DOCS / f"{name}.md", {"je": je, "model": network, "batches": batches})
    assert {"attributions": "smooth", "metrics": "worst", "calibration": "gating"}[name] in found


def test_every_page_is_listed_and_its_pictures_are_there():
    folder = PAGES[0].parent
    listed = (folder.parent / "bring-your-network.md").read_text()
    for page in PAGES:
        assert f"(howto/{page.name})" in listed
        for picture in re.findall(r"!\[[^]]*\]\(([^)]*)\)", page.read_text()):
            assert (folder / picture).is_file(), picture


def test_the_samples_are_named_by_their_class(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clone = tmp_path / "imagenet-sample-images"
    clone.mkdir()
    for number in range(1000):
        (clone / f"n{number + 1440764:08}_Some_class{number}.JPEG").touch()
    run_snippets(DOCS / "data.md")
    names = sorted(path.name for path in (tmp_path / "data" / "imagenet_samples").iterdir())
    assert names == [f"{index:04d}_some_class{index}.jpg" for index in range(0, 1000, 10)]
