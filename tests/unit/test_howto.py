"""Every page of docs/howto, and others with snippets: these run, one after the other."""

import re
from pathlib import Path

import pytest

import tests.listings  # noqa: F401: torchvision, which zennit imports, can be imported after it

COMPILE_QUICKLY = True
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
    names = {"__name__": "page"}
    text = page.read_text()
    blocks = list(re.finditer(r"```python[^\n]*\n(.*?)```", text, re.DOTALL))
    assert blocks
    for block in blocks:
        above = "\n" * text.count("\n", 0, block.start(1))  # errors then show the page's line
        exec(compile(above + block[1], str(page), "exec"), names)


def test_every_page_is_listed_and_its_pictures_are_there():
    folder = PAGES[0].parent
    listed = (folder.parent / "bring-your-network.md").read_text()
    for page in PAGES:
        assert f"(howto/{page.name})" in listed
        for picture in re.findall(r"!\[[^]]*\]\(([^)]*)\)", page.read_text()):
            assert (folder / picture).is_file(), picture
