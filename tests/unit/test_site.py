"""The pages build as a site without a warning, and every internal link and anchor of it leads somewhere."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPHINX = Path(f"{sys.prefix}-tests", "bin", "sphinx-build")


class Page(HTMLParser):
    """The links and anchors of one HTML page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links = set[str]()
        self.loaded = set[str]()
        self.anchors = set[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value:
                (self.links if tag == "a" else self.loaded).add(value)


def build(pages: Path, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SPHINX, "-q", "-W", "--keep-going", "-c", pages / "docs", "-d", out / "doctrees", pages, out / "html"],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    made = build(ROOT, out)
    assert made.returncode == 0, made.stderr
    return out / "html"


def _read(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text()) for path in site.rglob("*.html")}


def dead_links(site: Path) -> list[str]:
    """Return the links of a built site that lead nowhere within it. Other hosts are not asked."""
    pages = _read(site)
    dead = []
    for path, page in pages.items():
        for link in page.links | page.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = target.is_file()
            if there and parts.fragment and target in pages:
                there = unquote(parts.fragment) in pages[target].anchors or parts.fragment == "top"
            if not there:
                dead.append(f"{path.relative_to(site)}: {link}")
    return dead


@pytest.mark.timeout(360)
def test_every_internal_link_and_anchor_leads_somewhere(site: Path) -> None:
    assert sum(len(page.links) for page in _read(site).values()) > 500
    assert dead_links(site) == []


def test_every_page_of_docs_is_in_the_navigation(site: Path) -> None:
    index = Page((site / "docs" / "index.html").read_text())
    shown = {link.partition("#")[0] for link in index.links} | {"index.html"}
    assert {path.with_suffix(".html").name for path in (ROOT / "docs").glob("*.md")} <= shown


def test_the_site_loads_nothing_from_other_hosts(site: Path) -> None:
    foreign = {link for page in _read(site).values() for link in page.loaded if urlsplit(link).netloc}
    assert foreign == set()


def test_the_front_page_leads_to_the_index(site: Path) -> None:
    assert "docs/index.html" in Page((site / "index.html").read_text()).links


def test_a_dead_link_and_a_dead_anchor_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html#here">1</a><a href="b.html#gone">2</a><a href="c.html">3</a>')
    (tmp_path / "b.html").write_text('<p id="here"></p><a href="https://example.org/x">4</a><img src="no.png">')
    assert sorted(dead_links(tmp_path)) == ["a.html: b.html#gone", "a.html: c.html", "b.html: no.png"]


@pytest.mark.timeout(360)
def test_a_link_to_a_missing_anchor_stops_the_build(tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    (pages / "docs").mkdir(parents=True)
    for name in ("docs/conf.py", "pyproject.toml"):
        (pages / name).write_text((ROOT / name).read_text())
    (pages / "docs" / "index.md").write_text("# Index\n\n## Pages\n\n- [one](one.md): a page\n")
    (pages / "docs" / "one.md").write_text("# One\n\n[two](#two)\n")
    made = build(pages, tmp_path / "out")
    assert made.returncode != 0
    assert "two" in made.stderr
