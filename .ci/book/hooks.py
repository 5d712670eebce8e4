"""Makes pages of what docs/ leads to outside of it, so that the book is whole and every one of its links can be checked.

A page leads to code as it does on a forge: by a path relative to itself, as `../../reconciler/agent/judge.py`. Here every such
file becomes a page below `source/`, a folder becomes its list, and a link whose text is a name in a Python file leads to the line
where it is defined. A link to what does not exist is a warning, which ends a strict build. Called by MkDocs: `mkdocs.yml`.
"""

from __future__ import annotations

import ast
import logging
import os
import posixpath
import re
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[2]
DOCS = "docs"
SOURCE = "source"
LOG = logging.getLogger("mkdocs.hooks.book")
FENCED = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?\[(?P<text>[^\]]*)\])\((?P<target>[^)\s]+)\)")
NAMED = re.compile(r'(<a href="[^"]*source/(?P<path>[^"]+\.py)\.html)("><code>(?P<name>[A-Za-z_][\w.]*)</code></a>)')
LANGUAGES = {
    ".py": "python", ".yml": "yaml", ".yaml": "yaml", ".json": "json", ".toml": "toml", ".sh": "bash", ".service": "ini",
}  # fmt: skip


def on_files(files: Files, config: Any) -> Files:
    """Add a page for everything outside of docs/ that a page leads to, and for what those that are prose lead to."""
    queue = [f"{DOCS}/{file.src_uri}" for file in files.documentation_pages()]
    seen: set[str] = set()
    while queue:
        page = queue.pop()
        text = FENCED.sub("", (ROOT / page).read_text(encoding="utf-8"))
        for match in LINK.finditer(text):
            path = _path(page, match["target"])
            if path is None or path in seen or path.startswith(f"{DOCS}/") or not (ROOT / path).exists():
                continue
            seen.add(path)
            file = File.generated(config, _page_of(path), content=_content(path))
            # They are reached by links alone.
            file.inclusion = InclusionLevel.NOT_IN_NAV
            files.append(file)
            if path.endswith(".md"):
                queue.append(path)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links to files of the repository into links to their pages."""
    here = page.file.src_uri
    origin = _origin(here)
    if not origin.endswith(".md"):
        return markdown
    fenced = [match.span() for match in FENCED.finditer(markdown)]

    def turned(match: re.Match[str]) -> str:
        if any(start <= match.start() < end for start, end in fenced):
            return match[0]
        path = _path(origin, match["target"])
        if path is None or (origin.startswith(f"{DOCS}/") and path.startswith(f"{DOCS}/")):
            return match[0]
        if not (ROOT / path).exists():
            LOG.warning("%s: [%s](%s): there is no %s", here, match["text"], match["target"], path)
            return match[0]
        target = posixpath.relpath(_page_of(path), posixpath.dirname(here) or ".")
        return f"{match[1]}({target}{''.join(match['target'].partition('#')[1:])})"

    return LINK.sub(turned, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Lead a link whose text is a name in a Python file to its line. Not earlier: MkDocs does not know the lines as anchors."""

    def led(match: re.Match[str]) -> str:
        line = _defined(match["path"]).get(match["name"])
        return f"{match[1]}#line-0-{line}{match[3]}" if line else match[0]

    return NAMED.sub(led, html)


def _path(page: str, target: str) -> str | None:
    """The path in the repository that a link of a page leads to. None: to the page itself, or to another host."""
    path = target.partition("#")[0]
    if not path or re.match(r"^[a-z]+:", target):
        return None
    found = posixpath.normpath(posixpath.join(posixpath.dirname(page), path))
    return None if found.startswith("..") else found


def _page_of(path: str) -> str:
    """Where the book has a file of the repository: as itself below docs/, else as a page below `source/`."""
    if path.startswith(f"{DOCS}/"):
        return path.removeprefix(f"{DOCS}/")
    if path.endswith(".md"):
        # A README would become the index of its folder, and its address another than its name.
        return f"{SOURCE}/{path.removesuffix('README.md')}{'about.md' if path.endswith('README.md') else ''}"
    return f"{SOURCE}/{path}{'/list' if (ROOT / path).is_dir() else ''}.md"


def _origin(uri: str) -> str:
    """The file of the repository that a page of the book shows."""
    if not uri.startswith(f"{SOURCE}/"):
        return f"{DOCS}/{uri}"
    path = uri.removeprefix(f"{SOURCE}/")
    if path.endswith("about.md"):
        return f"{path.removesuffix('about.md')}README.md"
    return path if (ROOT / path).is_file() else path.removesuffix(".md")


@cache
def _defined(path: str) -> dict[str, int]:
    """Name → line of what a module defines at its top, and of its classes' members."""
    found: dict[str, int] = {}

    def add(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found[prefix + node.name] = node.lineno
                if isinstance(node, ast.ClassDef):
                    add(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found.update({prefix + target.id: node.lineno for target in targets if isinstance(target, ast.Name)})

    add(ast.parse((ROOT / path).read_text(encoding="utf-8")).body, "")
    return found


def _content(path: str) -> str:
    """The page of a file: prose as it is, a folder as a list, anything else as code."""
    place = ROOT / path
    if place.is_dir():
        names = sorted(entry.name + "/" * entry.is_dir() for entry in os.scandir(place) if entry.name != "__pycache__")
        return f"# {path}/\n\nA folder of the repository:\n\n" + "".join(f"- `{name}`\n" for name in names)
    text = place.read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"^`+", text, re.MULTILINE)), default=0))
    return f"# {path}\n\nAs of this build.\n\n{fence}{LANGUAGES.get(place.suffix, 'text')}\n{text.rstrip()}\n{fence}\n"
