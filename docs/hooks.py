"""A hook of MkDocs: links to files of the repository that are not pages of the site."""

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"(?<!!)\[((?:[^\]\[]|\[[^\]]*\])*)\]\(\s*(\.\.?/[^)#\s]+)(#[^)]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Let links out of `docs/` lead to the repository, or be text while it has no address.

    Raises:
        PluginError: there is no such file.
    """
    folder = Path(page.file.abs_src_path).parent

    def replaced(link: re.Match[str]) -> str:
        text, target, place = link.groups()
        path = (folder / target).resolve()
        if path.is_relative_to(ROOT / "docs"):
            return link[0]
        if not path.exists():
            raise PluginError(f"{page.file.src_path} links to {target}, which does not exist")
        if not config.repo_url:
            return text
        where = config.repo_url.rstrip("/")
        return f"[{text}]({where}/blob/main/{path.relative_to(ROOT)}{place or ''})"

    return _LINK.sub(replaced, markdown)
