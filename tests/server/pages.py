"""Reads pages as a person would, and holds each to what every page must be: outline, landmarks, labels, and nothing inline."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx

from tests.server.inside import PAGE
from tests.server.test_api import Api, served

_VOID = frozenset(
    ["area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"]
)
_BREAKS = frozenset(
    [
        "p",
        "div",
        "li",
        "tr",
        "td",
        "th",
        "h1",
        "h2",
        "h3",
        "h4",
        "dt",
        "dd",
        "section",
        "ul",
        "ol",
        "table",
        "caption",
        "br",
    ]
)


@dataclass
class Node:
    """An element."""

    tag: str
    attributes: dict[str, str]
    inside: list[Node | str] = field(default_factory=list)

    def words(self) -> str:
        """Its text as a person reads it."""
        return re.sub(r"\s+", " ", self._words()).strip()

    def _words(self) -> str:
        edge = " " if self.tag in _BREAKS else ""
        return edge + "".join(one if isinstance(one, str) else one._words() for one in self.inside) + edge

    def walk(self) -> Iterator[Node]:
        """Itself, and all below it."""
        yield self
        for one in self.inside:
            if isinstance(one, Node):
                yield from one.walk()


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("#root", {})
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute twice on <{tag}>: {names}"
        node = Node(tag, {name: value or "" for name, value in attrs})
        self._open[-1].inside.append(node)
        if tag not in _VOID:
            self._open.append(node)

    def handle_endtag(self, tag: str) -> None:
        if tag in _VOID:
            return
        assert self._open[-1].tag == tag, f"</{tag}> closes <{self._open[-1].tag}> at {self.getpos()}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        self._open[-1].inside.append(data)


class Page:
    """A page that was read."""

    def __init__(self, html: str) -> None:
        self.html = html
        parser = _Parser()
        parser.feed(html)
        parser.close()
        self.root = parser.root
        self.nodes = list(parser.root.walk())
        check(self)

    @property
    def ids(self) -> dict[str, Node]:
        return {node.attributes["id"]: node for node in self.nodes if "id" in node.attributes}

    @property
    def text(self) -> str:
        """Of the main part."""
        return self.of("main")

    @property
    def heading(self) -> str:
        return next(node.words() for node in self.nodes if node.tag == "h1")

    @property
    def links(self) -> list[str]:
        """Where the page leads."""
        return [node.attributes["href"] for node in self.nodes if node.tag == "a"]

    def of(self, name: str) -> str:
        """The text of what has an id."""
        return self.ids[name].words()

    def find(self, name: str, tag: str) -> Mapping[str, str]:
        """Attributes of the first of a tag below what has an id."""
        return next(node.attributes for node in self.ids[name].walk() if node.tag == tag)

    def rows(self) -> list[str]:
        """The text of each row of the tables' bodies."""
        bodies = [node for node in self.nodes if node.tag == "tbody"]
        return [node.words() for body in bodies for node in body.walk() if node.tag == "tr"]


def check(page: Page) -> None:
    """What every page must be."""
    nodes = page.nodes
    for node in nodes:
        assert "style" not in node.attributes, f"a style in the page: {node}"
        assert not any(name.startswith("on") for name in node.attributes), f"a script in the page: {node}"
        assert not any(value.lower().startswith("javascript:") for value in node.attributes.values())
        assert node.tag != "style"
        assert node.tag != "script" or (not node.words() and node.attributes["src"].startswith("/static/"))
    ids = [node.attributes["id"] for node in nodes if "id" in node.attributes]
    assert len(ids) == len(set(ids)), sorted(name for name in ids if ids.count(name) > 1)
    levels = [int(node.tag[1]) for node in nodes if re.fullmatch("h[1-6]", node.tag)]
    assert levels.count(1) == 1 and levels[0] == 1, levels
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels)), levels
    for landmark in ("header", "main", "footer"):
        assert sum(node.tag == landmark for node in nodes) == 1
    assert next(node for node in nodes if node.tag == "html").attributes["lang"] == "en"
    assert page.html.lower().startswith("<!doctype html>")
    _check_parts(page, set(ids))


def _check_parts(page: Page, ids: set[str]) -> None:
    labelled = {node.attributes.get("for") for node in page.nodes if node.tag == "label"}
    for node in page.nodes:
        if node.tag in ("input", "select", "textarea") and node.attributes.get("type") != "hidden":
            assert node.attributes.get("id") in labelled, f"no label: {node}"
        if node.tag == "form" and node.attributes.get("method", "get").lower() == "post":
            assert any(below.attributes.get("name") == "csrf" for below in node.walk()), "a form without its token"
        if node.tag == "table":
            assert any(below.tag == "caption" for below in node.walk()), (
                f"a table without a caption: {node.words()[:80]}"
            )
            assert all("scope" in below.attributes for below in node.walk() if below.tag == "th")
        if node.tag == "svg" and node.attributes.get("aria-hidden") != "true":
            assert node.attributes.get("role") == "img" and (
                node.attributes.get("aria-label") or node.attributes.get("aria-labelledby")
            ), "a drawing without words"
        if node.tag in ("a", "button"):
            assert node.words() or node.attributes.get("aria-label"), f"nothing to read: {node}"
        for name in (
            node.attributes.get("aria-labelledby", "") + " " + node.attributes.get("aria-describedby", "")
        ).split():
            assert name in ids, f"{name} is nowhere on the page"


@dataclass
class Reader:
    """A browser of the app, on the controller's own machine or logged in."""

    api: Api
    browser: httpx.Client

    @property
    def app(self) -> Any:
        return self.api.app

    def get(self, path: str, status: int = 200) -> Page:
        answer = self.browser.get(path, headers=PAGE)
        assert answer.status_code == status, (
            f"{path}: {answer.status_code} {answer.headers.get('location')}\n{answer.text[:2000]}"
        )
        return Page(answer.text)

    def follow(self, start: str = "/", most: int = 200) -> dict[str, Page]:
        """Every page that links lead to, each read once. AssertionError: one is not there."""
        found: dict[str, Page] = {}
        waiting = [start]
        while waiting and len(found) < most:
            path = waiting.pop(0)
            if path in found:
                continue
            answer = self.browser.get(path, headers=PAGE)
            if answer.is_redirect:
                waiting.append(answer.headers["location"])
                continue
            assert answer.status_code == 200, f"{path}: {answer.status_code}"
            found[path] = page = Page(answer.text)
            for link in page.links:
                target, _, anchor = link.partition("#")
                assert target == "" or target.startswith("/"), f"{path} leads elsewhere: {link}"
                if anchor and target == "":
                    assert anchor in page.ids, f"{path}: nothing is called {anchor}"
                if target:
                    waiting.append(target)
        return found


@contextmanager
def reading(tmp_path: Path, **options: Any) -> Iterator[Reader]:
    """The app over a stage that nothing is on yet, and a browser with a session that may acknowledge."""
    with served(tmp_path, **options) as api:
        yield Reader(api, api.app.log_in(api.app.token("anna")))
