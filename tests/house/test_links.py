"""Every link of the README and of docs/ leads to a file, a heading or a name in the code that exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.tree import ROOT, files, parsed

PAGES = [
    path for path in files() if path.suffix == ".md" and path.parts[0] in ("README.md", "CHANGELOG.md", "docs", "fleet")
]
LINK = re.compile(r"!?\[([^\]]*)\]\(([^)\s]+)\)")
NAME = re.compile(r"^`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)`$")


def links(page: Path) -> Iterator[tuple[str, str]]:
    """Text and target of every link outside of fenced blocks."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    yield from LINK.findall(text)


def anchors(page: Path) -> set[str]:
    """A page's headings, as addresses."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {"".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c in "-_") for title in titles}


def names(module: Path) -> set[str]:
    """What a module defines: functions, classes, their methods, and constants."""
    found: set[str] = set()

    def add(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    add(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found.update(prefix + target.id for target in targets if isinstance(target, ast.Name))

    add(parsed(module).body, "")
    return found


def faults(page: Path) -> Iterator[str]:
    """What is wrong with a page's links."""
    for text, target in links(page):
        if re.match(r"^[a-z]+:", target):
            yield f"{page}: [{text}]({target}) leaves the project; a link must work without a network"
            continue
        path, _, anchor = target.partition("#")
        at = Path((ROOT / page.parent / path).resolve() if path else (ROOT / page)).relative_to(ROOT)
        if not (ROOT / at).exists():
            yield f"{page}: [{text}]({target}): there is no {at}"
        elif anchor and anchor not in anchors(at):
            yield f"{page}: [{text}]({target}): {at} has no heading #{anchor}"
        elif at.suffix == ".py" and (name := NAME.match(text)) and name[1] not in names(at):
            yield f"{page}: [{text}]({target}): {at} defines no {name[1]}"


def test_every_link_leads_somewhere() -> None:
    wrong = [fault for page in PAGES for fault in faults(page)]
    assert not wrong, "\n".join(wrong)


def test_the_tour_has_ten_hops_each_with_a_name_in_the_code() -> None:
    text = (
        (ROOT / "README.md")
        .read_text(encoding="utf-8")
        .split("## How one device gets flashed", 1)[1]
        .split("\n## ", 1)[0]
    )
    hops = re.split(r"^\d+\. ", text, flags=re.MULTILINE)[1:]
    assert len(hops) == 10
    for hop in hops:
        assert [name for name, target in LINK.findall(hop) if target.endswith(".py") and NAME.match(name)], hop


def test_every_page_is_in_the_index() -> None:
    index = {target for _, target in links(Path("docs/README.md"))}
    pages = {
        str(path.relative_to("docs")) for path in PAGES if path.parts[0] == "docs" and path != Path("docs/README.md")
    }
    assert pages <= index, f"not in docs/README.md: {sorted(pages - index)}"


@pytest.mark.parametrize("path", [path for path in files() if path.suffix == ".svg"], ids=str)
def test_a_picture_says_in_words_what_it_shows(path: Path) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert "<title" in text
    assert "<desc" in text
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"(href|src)=(?![\"']#)|url\((?!#)", text), "a picture loads nothing"
