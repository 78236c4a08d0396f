"""Each notebook runs from top to bottom, and is kept without outputs."""

import json
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
PAGES = FOLDER.parent / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """The name of a kernel that is the interpreter which runs the tests."""
    folder = tmp_path / "kernels" / "tests"
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "tests", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return "tests"


def test_there_are_five():
    assert len(NOTEBOOKS) == 5
    listed = (FOLDER / "README.md").read_text()
    assert all(f"({path.name})" in listed for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_kept_without_outputs(path):
    notebook = nbformat.read(path, nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_page_of_the_site_shows_the_same_cells(path):
    notebook = nbformat.read(path, nbformat.NO_CONVERT)
    page = (PAGES / f"{path.stem}.md").read_text()
    cells = [
        f"```python\n{cell.source}\n```"
        if cell.cell_type == "code"
        else cell.source.replace("](../docs/", "](../")
        for cell in notebook.cells
    ]
    title, _, text = cells[0].partition("\n")
    places = [page.find(part) for part in (title, text, *cells[1:])]
    assert -1 not in places
    assert places == sorted(places)
    shown = re.findall(r"!\[[^]]+\]\(([^)]+)\)", page)
    assert shown
    assert {str(file.relative_to(PAGES)) for file in (PAGES / path.stem).iterdir()} == set(shown)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the kernel's messages
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, kernel):
    notebook = nbformat.read(path, nbformat.NO_CONVERT)
    client = NotebookClient(
        notebook, kernel_name=kernel, timeout=300, resources={"metadata": {"path": str(FOLDER)}}
    )
    client.execute()
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)
