"""The pictures in the README and in the book: `make screenshots` takes them, of the example fleet in its rollout.

Beside them stands what they were made from, a digest of each page's HTML and of the stylesheets: a test tells when a page has
changed since, and the pictures are not true any more. Scripts are off: what stands on a page is the server's alone.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import httpx
import structlog

from reconciler.server.dashboard.shell import HERE
from tests.browser.fleet import ROOT, Fleet, serving
from tests.browser.window import PROGRAM, windows

FOLDER = ROOT / "docs/images"
MADE_FROM = FOLDER / "made-from.json"
MOST_BYTES = 150 * 1024
_COLOURS = 256
_WIDE = 1160


@dataclass(frozen=True, slots=True)
class Picture:
    """A page, down to the end of an element of it."""

    path: str
    until: str
    scheme: Literal["light", "dark"] = "light"


PICTURES: Mapping[str, Picture] = {
    "now": Picture("/", "#holds"),
    "now-dark": Picture("/", "main > .card", "dark"),
    "flagged": Picture("/flagged", ".flag"),
    "rollout": Picture("/rollout", "main > .card"),
    "sites": Picture("/sites", "main > .card:nth-of-type(5)"),
}


@contextmanager
def shown() -> Iterator[tuple[str, str]]:
    """The service over the fleet, and the token of somebody who may acknowledge."""
    with tempfile.TemporaryDirectory(prefix="pictures-") as folder:
        fleet = Fleet(Path(folder))
        try:
            with serving(fleet.options()) as address:
                yield address, fleet.token()
        finally:
            fleet.close()


@contextmanager
def reading(address: str, token: str) -> Iterator[httpx.Client]:
    """A client with a session."""
    with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
        own = {"origin": address, "sec-fetch-site": "same-origin"}
        assert client.post("/login", data={"token": token}, headers=own).status_code == 303
        yield client


def page_of(client: httpx.Client, path: str) -> str:
    """A page, once its forecast is there."""
    for _ in range(600):
        answer = client.get(path, headers={"accept": "text/html"})
        assert answer.status_code == 200, answer.text
        if not any(words in answer.text for words in ("orecast is being made", "orecast is not computed yet")):
            return answer.text
        time.sleep(0.1)
    raise AssertionError(f"{path}: the forecast is never there")


def sources(client: httpx.Client) -> dict[str, str]:
    """Picture → a digest of what it is a picture of. Hashes of commits and digests stand for themselves in every fleet, and count
    for nothing; nor do blanks."""
    styles = b"".join(path.read_bytes() for path in sorted((HERE / "static").glob("*.css")))
    found = {}
    for name, picture in PICTURES.items():
        html = page_of(client, picture.path).partition("<body")[2].partition("<footer")[0]
        html = re.sub(r'name="csrf" value="[^"]*"|data-\w+="[^"]*"|\b[0-9a-f]{12,64}\b|\s+', " ", html)
        found[name] = hashlib.sha256(html.encode() + styles).hexdigest()
    return found


def take() -> None:
    """Take all pictures, and write down what they were made from."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    if program is None:
        sys.exit("needs chromium: apt-get install chromium fonts-dejavu-core")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    FOLDER.mkdir(exist_ok=True)
    with shown() as (address, token), reading(address, token) as client, sync_playwright() as playwright:
        digests = sources(client)
        chromium = playwright.chromium.launch(executable_path=program, args=list(PROGRAM))
        for name, picture in PICTURES.items():
            context = windows(chromium, size=(_WIDE, 3000), java_script_enabled=False, color_scheme=picture.scheme)
            context.add_cookies(
                [{"name": one.name, "value": one.value or "", "url": address} for one in client.cookies.jar]
            )
            page = context.new_page()
            page.goto(address + picture.path)
            box = page.locator(picture.until).first.bounding_box()
            assert box is not None, name
            clip = {"x": 0, "y": 0, "width": _WIDE, "height": round(box["y"] + box["height"]) + 16}
            data = small(page.screenshot(clip=clip, animations="disabled"))  # type: ignore[arg-type]
            (FOLDER / f"{name}.png").write_bytes(data)
            print(f"{name}.png: {len(data) / 1024:.0f} KiB", file=sys.stderr)
            context.close()
        chromium.close()
    MADE_FROM.write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")


def small(png: bytes) -> bytes:
    """The same picture in few colours."""
    from PIL import Image

    out = BytesIO()
    with Image.open(BytesIO(png)) as picture:
        few = picture.convert("RGB").quantize(_COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(out, "PNG", optimize=True)
    return out.getvalue()


if __name__ == "__main__":
    take()
