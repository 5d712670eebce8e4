"""The pictures in the README are of the pages as they are."""

from __future__ import annotations

import json
import re

import pytest

from tests.browser.fleet import ROOT
from tests.browser.pictures import FOLDER, MADE_FROM, MOST_BYTES, PICTURES, reading, shown, sources

REMEDY = "look at the pages, and run `make screenshots`"


@pytest.mark.slow
def test_the_pictures_are_of_the_pages_as_they_are() -> None:
    with shown() as (address, token), reading(address, token) as client:
        now, made = sources(client), json.loads(MADE_FROM.read_text(encoding="utf-8"))
    stale = sorted(name for name in now.keys() | made.keys() if now.get(name) != made.get(name))
    assert not stale, f"{', '.join(stale)}: the pages have changed since the pictures were taken; {REMEDY}"


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_there_and_small(name: str) -> None:
    data = (FOLDER / f"{name}.png").read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) <= MOST_BYTES


def test_every_picture_is_shown_with_words_for_who_does_not_see_it() -> None:
    texts = [(ROOT / path).read_text(encoding="utf-8") for path in ("README.md", "docs/how-to/look-at-the-fleet.md")]
    found = [one for text in texts for one in re.findall(r"!\[([^\]]*)\]\([\w./-]*images/([\w-]+)\.png\)", text)]
    assert {name for _, name in found} == set(PICTURES)
    assert {path.stem for path in FOLDER.glob("*.png")} == set(PICTURES)
    assert all(len(words) > 40 for words, _ in found)
