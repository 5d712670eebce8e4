"""A page in a browser that is listened to: what it complains of, how it looks, and what it leaves behind when a test fails."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, Response

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "build/screenshots"
PROGRAM = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--font-render-hinting=none",
)  # fmt: skip
DESK = (1280, 900)
PHONE = (360, 740)
SERIOUS = ("serious", "critical")
_CUT = (Path(__file__).parent / "cut.js").read_text(encoding="utf-8")


@cache
def axe() -> str:
    """The source of axe-core, as the package that is pinned bundles it."""
    return files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")


@dataclass
class Window:
    """One window of its own: no cookie of another test. `complaints` is what nobody should ever see in a console."""

    page: Page
    address: str
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    refused: tuple[int, ...] = ()
    """Statuses that the test asks for."""

    def __post_init__(self) -> None:
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.page.on("request", lambda request: self.requests.append(self._path(request.url)))
        self.page.on("requestfailed", self._failed)
        self.page.on("response", self._answered)

    def _path(self, url: str) -> str:
        return url.removeprefix(self.address)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not self._asked_for(message.text):
            self.complaints.append(f"{message.type}: {message.text}")

    def _asked_for(self, text: str) -> bool:
        return any(f"status of {status}" in text for status in self.refused)

    def _failed(self, request: Request) -> None:
        # Going to another page ends what the one before still asks for: its stream, itself, an icon.
        if "ERR_ABORTED" not in (request.failure or ""):
            self.complaints.append(f"failed: {self._path(request.url)}: {request.failure}")

    def _answered(self, response: Response) -> None:
        if response.status >= 400 and response.status not in self.refused:
            self.complaints.append(f"{response.status}: {self._path(response.url)}")

    def forgive(self, *words: str) -> None:
        """Forget complaints that a test brought about: each has one of these words in it."""
        assert all(any(word in one for word in words) for one in self.complaints), told(self.complaints)
        self.complaints.clear()

    # ------------------------------------------------ reading

    def wait(self, condition: str, *, s: float = 60) -> None:
        """Wait until a condition holds in the page, an expression of JavaScript."""
        self.page.wait_for_function(f"() => ({condition})", timeout=s * 1000)

    def live(self) -> Window:
        """Wait until the page follows what happens."""
        self.page.wait_for_selector("#link.on", timeout=60_000)
        return self

    def open(self, path: str) -> Window:
        """Go to a page, and be there when it is whole."""
        self.page.goto(self.address + path, wait_until="load")
        return self

    @property
    def text(self) -> str:
        """Of the main part, as it is seen."""
        return re.sub(r"\s+", " ", self.page.inner_text("main")).strip()

    def violations(self, *rules: str) -> list[str]:
        """What axe-core finds, serious and critical, each with its places. All rules of WCAG 2.2 AA and of good practice, or
        `rules` alone."""
        if not self.page.evaluate("() => typeof window.axe === 'object'"):
            self.page.evaluate(axe())
        only: dict[str, Any] = {"runOnly": {"type": "rule", "values": list(rules)}} if rules else {}
        options = {"resultTypes": ["violations"], **only}
        found = self.page.evaluate("(options) => axe.run(document, options)", options)
        return [
            f"{one['id']} ({one['impact']}): {one['help']}: "
            + "; ".join(" ".join(map(str, node["target"])) for node in one["nodes"][:4])
            for one in found["violations"]
            if one["impact"] in SERIOUS
        ]

    def overflow(self) -> list[str]:
        """What does not fit the screen: the page itself, or words that are cut."""
        wide = self.page.evaluate("() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        return [f"the page is {wide[0]} wide on {wide[1]}"] * (wide[0] > wide[1]) + self.page.evaluate(
            f"({_CUT[_CUT.index('() =>') :].strip()})"
        )

    def scrolled(self, boxes: str = ".scroll") -> list[str]:
        """Boxes that one must scroll to read all of, by their first words."""
        found: list[str] = self.page.evaluate(
            "(boxes) => [...document.querySelectorAll(boxes)].filter((box) => box.scrollWidth > box.clientWidth + 1)"
            ".map((box) => box.innerText.slice(0, 80))",
            boxes,
        )
        return found

    def keep(self, name: str) -> None:
        """Keep a picture of it with the run."""
        KEPT.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=KEPT / f"{name}.png", animations="disabled")

    def size(self, size: tuple[int, int]) -> None:
        """Make it so wide and high."""
        self.page.set_viewport_size({"width": size[0], "height": size[1]})


def windows(browser: Browser, *, size: tuple[int, int] = DESK, **options: Any) -> BrowserContext:
    """A context whose clocks and language are the same everywhere."""
    return browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        locale="en-GB",
        timezone_id="UTC",
        reduced_motion="reduce",
        **options,
    )


def name_of(path: str, *more: str) -> str:
    """A file name for a page's address."""
    return "-".join([re.sub(r"[^\w.]+", "-", path).strip("-") or "now", *more])


def told(complaints: Sequence[str]) -> str:
    """Complaints for an assertion's message."""
    return json.dumps(list(complaints), indent=1)
