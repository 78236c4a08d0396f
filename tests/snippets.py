"""The Python blocks of pages, run as a reader would."""

import re


def run_snippets(page, names=None):
    """Run the blocks of a page one after the other; return the names that they define.

    `names` are those that are defined before.
    """
    text = page.read_text()
    blocks = list(re.finditer(r"```python[^\n]*\n(.*?)```", text, re.DOTALL))
    assert blocks
    found = {**(names or {}), "__name__": "page"}
    for block in blocks:
        above = "\n" * text.count("\n", 0, block.start(1))  # errors then show the page's line
        exec(compile(above + block[1], str(page), "exec"), found)
    return found
