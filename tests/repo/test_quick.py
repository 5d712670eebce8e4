"""The quick reader says what the whole reader says, or nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.repo import quick, reader
from tests.house.tree import ROOT

FILES = sorted(path for folder in ("fleet", "tests") for path in (ROOT / folder).rglob("*.yaml"))
# What plain YAML is made of, and what it is not: pieces that end up beside each other in any order.
PIECES = st.sampled_from(
    [
        "a",
        "b-1",
        "key",
        ":",
        ": ",
        " ",
        "  ",
        "\n",
        "\n  ",
        "\n    ",
        "- ",
        "-",
        "[",
        "]",
        "{",
        "}",
        ", ",
        ",",
        "#",
        " # c",
        '"',
        "'",
        "v1.4.2",
        "02:00",
        "~",
        "null",
        "&x",
        "*x",
        "!t",
        "|",
        ">",
        "%",
        "@",
        "`",
        "\\",
        "\t",
        "\r",
        "\x07",
        "é",
        "---",
        "...",
        "?",
        "<<",
        "\ufeff",
    ]
)
LINES = st.lists(
    st.tuples(
        st.sampled_from(["", "  ", "    ", " "]),
        st.sampled_from(
            [
                "a: 1",
                "b:",
                "c: [x, y]",
                "- x",
                "- [a]",
                'd: {k: v, w: "02:00"}',
                "",
                "# c",
                "a: 'q' # c",
                'e: "x: y"',
                "f: a:b",
                "g: x # c",
                "h: null",
                "- ~",
                'i: [~, ""]',
                "a:",
                "j: 10.0.0.1",
                "- k: v",
                "l: [a:b]",
                "m: x y",
                "n: a,b",
                "o: {k: v, k: w}",
            ]
        ),
    ),
    max_size=8,
)


def agree(data: bytes) -> bool:
    """Whether the quick reader had an answer; it must be the whole reader's."""
    found = quick.quick(data)
    if found is None:
        return False
    assert reader.read_whole(data) == found
    return True


def test_it_reads_the_example_fleet_and_agrees_on_every_file() -> None:
    read = [path for path in FILES if agree(path.read_bytes())]
    sites = [path for path in FILES if path.parent == ROOT / "fleet/sites"]
    assert len(set(sites) & set(read)) > 0.9 * len(sites)


@given(LINES)
def test_it_agrees_on_lines_in_any_order(lines: list[tuple[str, str]]) -> None:
    agree("\n".join(indent + text for indent, text in lines).encode())


@given(st.lists(PIECES, max_size=25))
def test_it_agrees_on_pieces_in_any_order(pieces: list[str]) -> None:
    agree("".join(pieces).encode())


@pytest.mark.parametrize(
    "text",
    [
        "a: &x 1",
        "a: *x",
        "a: !t 1",
        "a: |\n  x",
        "a: 1\na: 2",
        "a: {k: 1, k: 2}",
        "a:\tb",
        "a: b\r\n",
        "a: é",
        "- x",
        "",
        "a: [b: c]",
        "a: 'it''s'",
        'a: "\\n"',
        "a: b\n  c",
        "? a",
        "<<: b",
        "a: b\n c: d",
        "a: [x,\n y]",
    ],
)
def test_what_is_not_plain_is_left_to_the_whole_reader(text: str) -> None:
    assert quick.quick(text.encode()) is None


def test_two_documents_share_no_list() -> None:
    first, second = (quick.quick(b"a: [x, y]\nb: {k: v}\n") for _ in range(2))
    assert first is not None and second is not None and first == second
    assert first["a"] is not second["a"] and first["b"] is not second["b"]
