"""Sphinx's configuration for the pages as a site (`make site`).

The sources are Markdown that also reads well in a repository: pages of docs/, and a few beside the code. The
navigation is that of docs/index.md. Nothing is loaded from other hosts.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from pygments.lexers.special import TextLexer

ROOT = Path(__file__).resolve().parent.parent
_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

project = "MEP"
release = version = _PROJECT["version"]
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "mep/*.md", "*.md"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = f"MEP {release}"
html_show_sourcelink = False
html_copy_source = False
html_use_index = False
html_show_copyright = False
html_additional_pages = {"index": "redirect.html"}
templates_path = ["_templates"]


def navigation(index: str) -> str:
    """Return index.md with a hidden table of contents for each of its headings, made from the links below it.

    A page that two parts list is in the navigation of the first.
    """
    seen = set[str]()
    trees = []
    for part in re.split(r"^## ", index, flags=re.MULTILINE)[1:]:
        caption, _, body = part.partition("\n")
        pages = [page for page in re.findall(r"^- \[[^]]*\]\(([^)#]+\.md)\)", body, re.MULTILINE) if page not in seen]
        seen.update(pages)
        trees += ["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""]
    return "\n".join([index, *trees])


def _read(_app: Any, name: str, text: list[str]) -> None:
    if name == root_doc:
        text[0] = navigation(text[0])


def setup(app: Any) -> dict[str, bool]:
    """Connect the navigation, and show the source of Mermaid's diagrams, since no script is loaded for them."""
    app.connect("source-read", _read)
    app.add_lexer("mermaid", TextLexer)
    return {"parallel_read_safe": True}
