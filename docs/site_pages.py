"""Hooks of mkdocs: pages that lie outside docs/ join the site, and links to what is no page become plain text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "ARCHITECTURE.md": "ARCHITECTURE.md", "CHANGELOG.md": "CHANGELOG.md"}
"""Files in the root -> their pages on the site."""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of the root."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point links at the site's pages; GitHub's links start at the file's own folder."""
    folder = ROOT if page.file.src_uri in PAGES.values() else ROOT / "docs"

    def link(found: re.Match[str]) -> str:
        image, text, target, anchor = found.groups("")
        if not target:
            return found[0]
        path = (folder / target).resolve()
        name = PAGES.get(path.name) if path.parent == ROOT else None
        if path.is_relative_to(ROOT / "docs"):
            name = str(path.relative_to(ROOT / "docs"))
        return f"{image}[{text}]({name}{anchor})" if name else text

    pattern = r"```.*?```|(!?)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)"
    return re.sub(pattern, link, markdown, flags=re.DOTALL)
