"""The tutorial, followed by a machine: every command as it stands on the page, in order, and everything that it shows compared.

Beside the page's own text: what was forecast of each merge is what happened, line by line, to the minute.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import page
from tests.support.system import need

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/tutorial/first-promotion.md"
CELLS = 6


@pytest.fixture
def terminals() -> Iterator[page.Terminals]:
    for program, package in (("git", "git"), ("gpgv", "gpgv"), ("mke2fs", "e2fsprogs"), ("zstd", "zstd")):
        need(program, package)
    # A short path of its own: sockets and GnuPG homes lie in it.
    folder = Path(tempfile.mkdtemp(prefix="page-"))
    made = page.Terminals(folder, page.environment(Path(sys.executable).parent))
    try:
        yield made
    finally:
        code = made.close()
        shutil.rmtree(folder, ignore_errors=True)
    assert code == 0, "Ctrl-C is how it ends"


def table(lines: list[str], title: str) -> list[tuple[str, ...]]:
    """The rows below a title: wave, release, devices, starts, last arrives, proven."""
    if title not in lines:
        return []
    rows = []
    for line in lines[lines.index(title) + 2 :]:
        cells = re.split(r" {2,}", line.strip())
        if len(cells) < CELLS:
            break
        rows.append(tuple(cells[:CELLS]))
    return rows


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.timeout(400)
def test_a_reader_sees_what_the_page_shows_and_what_was_forecast(terminals: page.Terminals) -> None:
    wrong, ahead, compared = [], list[tuple[str, ...]](), 0
    for step in page.steps(PAGE.read_text(encoding="utf-8")):
        if step.command is None:
            printed = terminals.next_of_first()
            if ahead and (happened := table(printed, "What happened")):
                assert happened == ahead
                ahead, compared = [], compared + len(happened)
        else:
            printed = terminals.run(step.command)
            ahead = table(printed, "Calendar") or ahead
        shown = [line for line in step.shown if line]
        if not page.same(shown, [line for line in printed if line]):
            wrong.append("\n".join([f"$ {step.command}", "is shown as", *shown, "and printed", *printed]))
        if wrong and step.command is None:
            break
    assert not wrong, "\n\n".join(wrong)
    # Five waves of the promotion, and five of its revert; in between a release was broken, which no forecast can know.
    assert compared == 10


@pytest.mark.parametrize(
    ("shown", "printed", "agree"),
    [
        (["a", "b"], ["a", "b"], True),
        (["a", "b"], ["a", "c"], False),
        (["a"], ["a", "b"], False),
        (["…", "b"], ["a", "a", "b"], True),
        (["…", "b", "…"], ["a", "c"], False),
        (["a", "…"], ["a"], True),
        (["in force …"], ["in force since noon"], True),
        (["in force …"], ["in doubt"], False),
        (["commit 8cf153619086"], ["commit 0a1b2c3d4e5f"], True),
        (["at 15:32Z"], ["at 15:33Z"], False),
        ([], ["a"], False),
    ],
)
def test_a_page_is_held_to_what_is_printed(shown: list[str], printed: list[str], agree: bool) -> None:
    assert page.same(shown, printed) is agree


def test_a_page_is_read_as_its_reader_reads_it() -> None:
    text = "```console\n$ cat >f <<'EOF'\n$ no command\nEOF\n$ one \\\n    --two\nprinted\n```\ntext\n```text\nfirst\n…\n```\n"
    assert list(page.steps(text)) == [
        page.Step("cat >f <<'EOF'\n$ no command\nEOF", ()),
        page.Step("one \\\n    --two", ("printed",)),
        page.Step(None, ("first", "…")),
    ]
