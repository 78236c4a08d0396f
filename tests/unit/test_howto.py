"""Every page of docs/howto, and others with snippets: these run, one after the other."""

import re
from pathlib import Path

import pytest

COMPILE_QUICKLY = True
DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted((DOCS / "howto").glob("*.md"))


@pytest.mark.parametrize(
    "page", [*PAGES, DOCS / "smooth-gates.md", DOCS / "index.md"], ids=lambda page: page.stem
)
# PyTorch's exporter and Keras warn of what is theirs to mend.
@pytest.mark.filterwarnings("ignore")
def test_the_snippets_of(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)


def test_every_page_is_listed_and_its_pictures_are_there():
    folder = PAGES[0].parent
    listed = (folder.parent / "bring-your-network.md").read_text()
    for page in PAGES:
        assert f"(howto/{page.name})" in listed
        for picture in re.findall(r"!\[[^]]*\]\(([^)]*)\)", page.read_text()):
            assert (folder / picture).is_file(), picture
