"""Edits by position: what was asked is what is read afterwards, and every line that need not change is as it was."""

from __future__ import annotations

import json
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from reconciler.propose.edit import Append, CannotEdit, Edit, Remove, Set, edited
from reconciler.propose.scalar import text_written
from reconciler.repo.reader import read

FLEET = Path(__file__).resolve().parents[2] / "fleet"
WORDS = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12
) | st.sampled_from(
    [
        "v1.4.2",
        "2.10",
        "NO",
        "<<",
        "=",
        "null",
        "~",
        "a: b",
        "x #y",
        "[z",
        "it's",
        'say "no"',
        "-",
        "- a",
        "0x1f",
        "1:30",
        "yes",
        "\n",
        "é\t😀",
    ]
)
KEYS = st.sampled_from(["image", "soak", "paused", "why", "maxFailed", "tag"])
COMMENT = st.sampled_from(["", "", "  # why, and {more}: 'of' it", " # c"])


def changed_lines(old: bytes, new: bytes) -> tuple[int, int]:
    """Lines taken away and lines added."""
    ops = SequenceMatcher(None, old.split(b"\n"), new.split(b"\n"), autojunk=False).get_opcodes()
    gone = sum(i2 - i1 for kind, i1, i2, _, _ in ops if kind != "equal")
    come = sum(j2 - j1 for kind, _, _, j1, j2 in ops if kind != "equal")
    return gone, come


@st.composite
def documents(draw: st.DrawFn) -> tuple[bytes, Any, str]:
    """A document with a list of mappings and texts, in one of the ways in which people and programs write it."""
    entry = st.dictionaries(KEYS, WORDS, min_size=1, max_size=4)
    items = draw(st.lists(entry, min_size=1, max_size=3))
    names = draw(st.lists(WORDS, max_size=3))
    data = {"spec": {"items": items, "names": names, "last": "x"}}
    style = draw(st.sampled_from(["block", "flow", "json", "compact", "wide-flow"]))
    if style in ("json", "compact"):
        text = json.dumps(data, indent=2 if style == "json" else None, ensure_ascii=draw(st.booleans()))
        text = text.replace("\x7f", "\\u007f")
    else:
        text = written(draw, items, names, style)
    if draw(st.booleans()):
        text += "\n"
    if draw(st.booleans()):
        text = text.replace("\n", "\r\n")
    return text.encode("utf-8"), data, style


def written(draw: st.DrawFn, items: list[dict[str, str]], names: list[str], style: str) -> str:
    def scalar(value: str, *, flow: bool) -> str:
        return text_written(value, flow=flow, style=draw(st.sampled_from([None, "'", '"'])))

    lines = ["# top", "", "spec:", "  # the items" + draw(COMMENT), "  items:"]
    for item in items:
        pairs = [(key, scalar(value, flow=style != "block")) for key, value in item.items()]
        if style == "flow":
            lines.append("    - {" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}" + draw(COMMENT))
        elif style == "wide-flow":
            tail = draw(st.sampled_from(["", ","]))
            ends = ["," for _ in pairs[1:]] + [tail]
            lines += [
                "    - {",
                *(f"        {k}: {v}{e}{draw(COMMENT)}" for (k, v), e in zip(pairs, ends, strict=True)),
                "      }",
            ]
        else:
            lines += [
                f"    {'- ' if not number else '  '}{key}: {value}{draw(COMMENT)}"
                for number, (key, value) in enumerate(pairs)
            ]
            lines += draw(st.sampled_from([[], [""], ["", "      # on its own"]]))
    if style == "block" and names:
        lines.append("  names:" + draw(COMMENT))
        lines += [f"  - {scalar(name, flow=False)}{draw(COMMENT)}" for name in names]
    else:
        lines.append("  names: [" + ", ".join(scalar(name, flow=True) for name in names) + "]" + draw(COMMENT))
    return "\n".join([*lines, "  last: x"])


@st.composite
def edits(draw: st.DrawFn, data: Any) -> Edit:
    number = draw(st.integers(0, len(data["spec"]["items"]) - 1))
    item = data["spec"]["items"][number]
    kind = draw(st.sampled_from(["set", "insert", "remove", "append", "nested"]))
    where = ("spec", "items", number)
    if kind == "set":
        return Set((*where, draw(st.sampled_from(sorted(item)))), draw(WORDS))
    if kind == "remove" and len(item) > 1:
        return Remove((*where, sorted(item)[0])) if draw(st.booleans()) else Remove((*where, list(item)[-1]))
    if kind == "append":
        return Append(("spec", "names"), draw(WORDS))
    if kind == "nested":
        return Set((*where, "pin"), {"image": draw(WORDS), "devices": draw(st.lists(WORDS, max_size=2))})
    return Set((*where, "new"), draw(WORDS | st.booleans()), tuple(sorted(item)[:1]))


def applied(data: Any, edit: Edit) -> Any:
    data = json.loads(json.dumps(data))
    holder = data
    for part in edit.where[:-1]:
        holder = holder[part]
    if isinstance(edit, Set):
        value = edit.value
        holder[edit.where[-1]] = str(value).lower() if isinstance(value, bool) else value
    elif isinstance(edit, Remove):
        del holder[edit.where[-1]]
    else:
        holder[edit.where[-1]].append(edit.value)
    return data


@pytest.mark.slow
@given(st.data())
def test_an_edit_does_what_was_asked_and_touches_no_other_line(data: st.DataObject) -> None:
    before, content, style = data.draw(documents())
    assert read(before) == content
    edit = data.draw(edits(content))
    try:
        after = edited(before, edit)
    except CannotEdit:
        # The first entry of a block item stands behind its dash: there is no line to take away.
        assert isinstance(edit, Remove)
        assert style == "block"
        assert edit.where[-1] == next(iter(content["spec"]["items"][edit.where[2]]))
        return
    assert read(after) == applied(content, edit)
    gone, come = changed_lines(before, after)
    if style == "compact" or (isinstance(edit, Set) and edit.where[-1] in content["spec"]["items"][edit.where[2]]):
        assert (gone, come) == (1, 1) or before == after
    else:
        assert gone <= 2  # an entry, and the neighbour that gains or loses its comma
        assert come <= (4 if edit.where[-1] == "pin" else 2)
    assert after.count(b"\r\n") == (after.count(b"\n") if b"\r\n" in before else 0)
    assert before.endswith(b"\n") == after.endswith(b"\n")
    if not isinstance(edit, Remove):
        assert after.count(b"# why, and {more}: 'of' it") == before.count(b"# why, and {more}: 'of' it")


@example("<<", None, False)
@example("=", None, True)
@given(WORDS, st.sampled_from([None, "'", '"']), st.booleans())
def test_a_text_is_the_same_text_to_every_reader(word: str, style: str | None, flow: bool) -> None:
    text = text_written(word, flow=flow, style=style)
    document = f"a: [{text}, b]\n" if flow else f"a: {text} # c\n"
    wanted = [word, "b"] if flow else word
    assert read(document.encode())["a"] == wanted
    for version in ("1.1", "1.2"):
        reader = YAML(typ="safe", pure=True)
        reader.version = version
        found = reader.load(document)["a"]
        assert found == wanted
        assert all(isinstance(one, str) for one in (found if flow else [found]))


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(FLEET.rglob("*.yaml")), ids=lambda path: path.name)
def test_setting_what_is_there_changes_no_byte(path: Path) -> None:
    data = path.read_bytes()
    content = read(data)

    def scalars(node: Any, where: tuple[Any, ...]) -> list[Set]:
        if isinstance(node, dict):
            return [edit for key, value in node.items() for edit in scalars(value, (*where, key))]
        return [Set(where, node)] if isinstance(node, str) and isinstance(where[-1], str) else []

    for edit in scalars(content, ())[:25]:
        again = edited(data, edit)
        assert read(again) == content
        assert len(again.split(b"\n")) == len(data.split(b"\n"))


def test_a_key_comes_after_the_named_neighbour_and_is_taken_away_without_a_trace() -> None:
    before = (FLEET / "sites/SITE-2847.yaml").read_bytes()
    pinned = edited(
        before, Set(("spec", "pin"), {"image": "v1.4.1", "why": "decoder: stalls"}, ("timezone", "devices"))
    )
    assert b"devices: [SITE-2847-1, SITE-2847-2]\n  pin:\n    image: v1.4.1\n" in pinned
    assert edited(pinned, Remove(("spec", "pin"))) == before


@pytest.mark.parametrize(
    ("before", "edit", "after"),
    [
        ("a: {b: c}", Set(("a", "b"), "d"), "a: {b: d}"),
        ("a:   # c\nb: 1\n", Set(("a",), "d"), "a: d   # c\nb: 1\n"),
        ("a: |\n  x\n  y\n\n# c\nb: 1\n", Set(("a",), "z"), "a: z\n\n# c\nb: 1\n"),
        ("a: >-\n  x\nb: 1\n", Set(("c",), "z", ("a",)), "a: >-\n  x\nc: z\nb: 1\n"),
        ("a: 'x'   # c\r\nb: 1\r\n", Set(("a",), "it's"), "a: 'it''s'   # c\r\nb: 1\r\n"),
        ("a: 1", Set(("b",), "c"), "a: 1\nb: c"),
        ('{"a":"1","b":"2"}', Set(("c",), "3", ("a",)), '{"a":"1","c":"3","b":"2"}'),
        ('{\n\t"a": {},\n\t"b": "1"\n}', Set(("a", "x"), "y"), '{\n\t"a": {"x": "y"},\n\t"b": "1"\n}'),
        ('{"e": "\\ud83d\\ude00", "a": "1"}', Set(("a",), "2"), '{"e": "\\ud83d\\ude00", "a": "2"}'),
        ("a: [x, y, ] # c", Append(("a",), "z"), "a: [x, y, z, ] # c"),
        ("a:\n  - x # c\n  # end\nb: 1\n", Append(("a",), "z"), "a:\n  - x # c\n  - z\n  # end\nb: 1\n"),
        ("a:\n- x\n", Append(("a",), "z"), "a:\n- x\n- z\n"),
        ("a: {b: c, d: e}", Remove(("a", "d")), "a: {b: c}"),
        ("a: {b: c, d: e}", Remove(("a", "b")), "a: {d: e}"),
        ('{\n  "a": "1",\n  "b": "2"\n}\n', Remove(("b",)), '{\n  "a": "1"\n}\n'),
        ("a:\n  d:   # both\n    - x\n    - y\n  e: z\n", Set(("a", "d"), ["q"]), "a:\n  d: [q]   # both\n  e: z\n"),
        ("---\na: 1\n...\n", Set(("b",), "c"), "---\na: 1\nb: c\n...\n"),
    ],
)  # fmt: skip
def test_ways_of_writing(before: str, edit: Edit, after: str) -> None:
    assert edited(before.encode(), edit).decode() == after


@pytest.mark.parametrize(
    ("text", "edit"),
    [
        ("a: 1\n", Set(("b", "c"), "d")),
        ("a: 1\n", Remove(("b",))),
        ("a: 1\n", Append(("a",), "b")),
        ("a: [x]\n", Set(("a", "b"), "c")),
        ("- a: 1\n  b: 2\n", Remove((0, "a"))),
        ("a: |+\n  x\n\n\nb: 1\n", Set(("c",), "d", ("a",))),
    ],
)
def test_what_cannot_be_done_alone_is_refused_with_a_remedy(text: str, edit: Edit) -> None:
    with pytest.raises(CannotEdit, match="by hand"):
        edited(text.encode(), edit)
