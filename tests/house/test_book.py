"""The book builds strictly, holds every page, loads nothing from elsewhere, and leads to no other host."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from tests.house.tree import ROOT, files

CONFIG = ROOT / ".ci/book/mkdocs.yml"
PAGES = sorted(path for path in files() if path.parts[0] == "docs" and path.suffix == ".md")


class _Loader(yaml.SafeLoader):
    """Reads MkDocs' settings, in which one value is a Python object."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


class Places(HTMLParser):
    """Where a page leads to, and what it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.leads: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src", "srcset", "action", "data", "poster"):
                (self.leads if tag == "a" else self.loads).append(value or "")


def build(config: Path, to: Path) -> subprocess.CompletedProcess[str]:
    """Build the book strictly, as `make book` does."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config), "--site-dir", str(to)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=to.parent, env=environment, capture_output=True, text=True, check=False)


def test_every_page_has_its_place() -> None:
    """In the navigation, once: MkDocs would find this too, after some seconds."""
    nav = yaml.load(CONFIG.read_text(encoding="utf-8"), _Loader)["nav"]

    def walk(item: object) -> list[str]:
        if isinstance(item, str):
            return [item]
        below = item if isinstance(item, list) else list(item.values()) if isinstance(item, dict) else []
        return [name for part in below for name in walk(part)]

    named = walk(nav)
    assert len(set(named)) == len(named)
    assert set(named) - {"source/CHANGELOG.md"} == {str(path.relative_to("docs")) for path in PAGES}


@pytest.mark.slow
def test_the_book_is_whole(tmp_path: Path) -> None:
    site = tmp_path / "book"
    done = build(CONFIG, site)
    assert done.returncode == 0, done.stderr
    made = sorted(site.rglob("*.html"))
    assert len(made) > len(PAGES)
    for page in made:
        places = Places()
        places.feed(page.read_text(encoding="utf-8"))
        abroad = [place for place in (*places.leads, *places.loads) if re.match(r"^([a-z]+:)?//", place)]
        assert not abroad, f"{page.relative_to(site)} leads to another host: {abroad}"
        # MkDocs checks the links of pages; what the theme loads, nobody else does. 404.html is served at any address.
        if page.name != "404.html":
            gone = [
                place
                for place in places.loads
                if place and not place.startswith("data:") and not (page.parent / place.split("?")[0]).exists()
            ]
            assert not gone, f"{page.relative_to(site)} loads what is not there: {gone}"
        assert 'class="mermaid"' not in page.read_text(encoding="utf-8"), "the theme would fetch a program to draw it"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet
    # A link to a name in the code leads to its line.
    line = re.search(
        r'href="\.\./(source/\S+want\.py\.html)#(line-0-\d+)"', (site / "reference/reasons.html").read_text()
    )
    assert line is not None
    assert f'id="{line[2]}"' in (site / line[1]).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("link", "told"),
    [
        ("[a](reference/no-such-page.md)", "no-such-page.md"),
        ("[a](dependencies.md#no-such-heading)", "no-such-heading"),
        ("[a](../reconciler/no_such_module.py)", "there is no reconciler/no_such_module.py"),
    ],
    ids=["page", "heading", "code"],
)
def test_a_link_that_leads_nowhere_ends_the_build(tmp_path: Path, link: str, told: str) -> None:
    """In a book of one page, with the settings and the hooks of the real one."""
    root = tmp_path / "copy"
    shutil.copytree(CONFIG.parent, root / ".ci/book", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "dependencies.md"):
        (root / "docs").mkdir(exist_ok=True)
        (root / "docs" / name).write_text(f"# A page\n\n{link if name == 'README.md' else ''}\n", encoding="utf-8")
    config = root / ".ci/book/mkdocs.yml"
    text = re.sub(r"^nav:\n(?: .*\n|\n)+", "", config.read_text(encoding="utf-8"), flags=re.MULTILINE)
    config.write_text(text, encoding="utf-8")
    done = build(config, tmp_path / "book")
    assert done.returncode != 0
    assert told in done.stderr
