"""Runs the notebooks and writes them as pages of the site, by `-m experiments.notebook_pages`."""

import re
from pathlib import Path
from typing import Any

import nbformat
import typer
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
OUT = ROOT / "docs" / "notebooks"
NOTE = """
!!! note
    This page is [`notebooks/{name}`](../../notebooks/{name}), run from top to bottom.
"""


def page_of(notebook: Any, name: str) -> tuple[str, dict[str, bytes]]:
    """Return the Markdown of one notebook, and the pictures that it shows, by their paths."""
    stem = Path(name).stem
    resources = {"unique_key": "picture", "output_files_dir": stem}
    body, found = MarkdownExporter().from_notebook_node(notebook, resources=resources)
    title, _, rest = body.lstrip().partition("\n")
    page = f"{title}\n{NOTE.format(name=name)}\n{rest}".replace("](../docs/", "](../")
    page = page.replace("![png](", "![What the cell above draws](")
    page = re.sub(r"[ ]+$", "", page, flags=re.M)
    return re.sub(r"\n{4,}", "\n\n", page).rstrip() + "\n", found["outputs"]


def main(out: Path = OUT) -> None:
    """Write one page per notebook, with its pictures in a folder beside it."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = nbformat.read(path, nbformat.NO_CONVERT)
        resources = {"metadata": {"path": str(NOTEBOOKS)}}
        NotebookClient(notebook, kernel_name="python3", resources=resources).execute()
        page, pictures = page_of(notebook, path.name)
        (out / path.stem).mkdir(parents=True, exist_ok=True)
        for each, content in pictures.items():
            (out / each).write_bytes(content)
        (out / f"{path.stem}.md").write_text(page)
        typer.echo(f"{out / path.stem}.md: {len(pictures)} pictures")


if __name__ == "__main__":
    typer.run(main)
