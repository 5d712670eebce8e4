"""The YAML reader: text stays text, places are right, and no bytes whatever get more out of it than a refusal."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reconciler.repo.parse import parse
from reconciler.repo.reader import MAX_BYTES, MAX_DEPTH, Refused, Spot, locate, nearest, read

PLACES = ("fleet.yaml", "waves.yaml", "images/v1.yaml", "apps/a.yaml", "sites/s.yaml", "tests/t.json")


@pytest.mark.parametrize(
    "text", ["02:00", "v1.10", "1.10", "NO", "yes", "2.8", "0x1F", "0o17", "1_000", "2026-01-15", ".inf", "="]
)
def test_a_scalar_stays_as_written(text: str) -> None:
    assert read(f"key: {text}\n{text}: 1\n".encode()) == {"key": text, text: "1"}


@pytest.mark.parametrize("text", ["", "~", "null", "Null", "NULL"])
def test_a_plain_null_is_none_and_a_quoted_one_is_text(text: str) -> None:
    assert read(f"a: {text}\nb: '{text}'\nc: [x]\n".encode()) == {"a": None, "b": text, "c": ["x"]}


def test_block_scalars_and_escapes_are_read() -> None:
    assert read(b'a: |\n  one\n  two\nb: >-\n  one\n  two\nc: "\\u00e9\\n"\n') == {
        "a": "one\ntwo\n",
        "b": "one two",
        "c": "é\n",
    }


def test_json_is_yaml_with_characters_beyond_the_first_plane() -> None:
    value = {"a": ["😀", "x\\ud83d", {"b": "\t"}], "c": {}}
    assert read(json.dumps(value).encode()) == value
    assert read(json.dumps(value, ensure_ascii=False, indent="\t").encode()) == value


def test_depth_is_bounded_on_the_spot() -> None:
    assert read(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH) is not None
    for bomb in (b"[" * 500_000, b"{a: " * 200_000, b"- " * 500_000, b"? " * 500_000):
        with pytest.raises(Refused) as refused:
            read(bomb)
        assert refused.value.faults[-1].column <= 4 * MAX_DEPTH + 5


def test_size_is_bounded() -> None:
    read(b"a: b\n#" + b"x" * (MAX_BYTES - 6))
    with pytest.raises(Refused, match="more than 1048576"):
        read(b"a: b\n#" + b"x" * (MAX_BYTES - 5))


def test_every_fault_of_a_file_is_told_at_once() -> None:
    with pytest.raises(Refused) as refused:
        read(b"a: &x 1\na: 2\nb: *x\n<<: {}\nc: !t 1\n")
    assert [(f.line, f.code) for f in refused.value.faults] == [
        (1, "anchor"),
        (2, "duplicate-key"),
        (3, "alias"),
        (4, "merge"),
        (5, "tag"),
    ]


def test_places_count_from_one_in_characters() -> None:
    spots = locate("a: é\nlist:\n  - x\n  - {k: v, ü: [1, 2]}\nnone:\n".encode())
    assert spots[()] == Spot(1, 1, 1, 1)
    assert spots[("a",)] == Spot(1, 1, 1, 4)
    assert spots[("list", 0)] == Spot(3, 5, 3, 5)
    assert spots[("list", 1, "ü")] == Spot(4, 12, 4, 15)
    assert spots[("list", 1, "ü", 1)] == Spot(4, 19, 4, 19)
    assert spots[("none",)] == Spot(5, 1, 5, 1)
    assert nearest(spots, ("list", 1, "missing", "below")) == (Spot(4, 5, 4, 5), False)
    assert nearest({}, ("a",)) == (Spot(1, 1, 1, 1), False)


def test_places_of_a_refused_file_end_where_it_breaks() -> None:
    assert ("a",) in locate(b"a: 1\nb: [")
    assert locate(b"[" * 100_000) is not None
    assert ("a",) in locate(b"a: 1\n? [x]\n: y\n")


leaves = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Zl", "Zp"), exclude_characters="\ufeff")
)
trees = st.recursive(
    leaves,
    lambda below: st.lists(below, max_size=4) | st.dictionaries(leaves.filter(bool), below, max_size=4),
    max_leaves=20,
)


def ways(tree: Any, way: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    found = {way}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, below in items:
        found |= ways(below, (*way, key))
    return found


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(trees, st.booleans())
def test_what_is_written_is_read_and_every_entry_has_its_place(tree: Any, flow: bool) -> None:
    data = yaml.dump(
        tree, Dumper=yaml.CSafeDumper, default_style='"', default_flow_style=flow, allow_unicode=True, width=1000
    )
    assert read(data.encode()) == tree
    assert set(locate(data.encode())) == ways(tree)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(PLACES))
@example(b"\x00", "fleet.yaml")
@example(b"\xff\xfea\x00", "waves.yaml")
@example(b"%YAML 1.9\n---\na", "sites/s.yaml")
@example(b"--- >99\n a", "sites/s.yaml")
def test_no_bytes_get_more_than_problems_out_of_the_loader(data: bytes, path: str) -> None:
    parsed = parse(path, "blob", data)
    assert parsed.spec is None
    assert parsed.problems
    assert all(problem.line >= 1 and problem.column >= 1 and str(problem).isprintable() for problem in parsed.problems)


yamlish = st.text(st.sampled_from(list("ab:-?[]{},#&*!|>'\"%@` \n\t~<0\\é\u2028\x85")), max_size=80)


@settings(max_examples=400, deadline=None)
@given(yamlish)
def test_text_that_looks_like_yaml_is_read_or_refused_with_a_place(text: str) -> None:
    data = text.encode()
    try:
        tree = read(data)
    except Refused as refused:
        lines = len(text.splitlines()) + 1
        assert all(1 <= fault.line <= lines and fault.column >= 1 for fault in refused.faults)
        return
    assert ways(tree) == set(locate(data))


junk = st.recursive(
    st.none()
    | st.text(max_size=5)
    | st.sampled_from(["v1", "48h", "10%", "UTC", "true", "02:00", "canary", "fleet/v1"]),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "spec",
                    "metadata",
                    "name",
                    "waves",
                    "sites",
                    "devices",
                    "image",
                    "apps",
                    "soak",
                    "window",
                    "start",
                    "pin",
                    "documents",
                    "observed",
                    "expect",
                    "actions",
                    "now",
                    "releases",
                    "freezes",
                    "from",
                    "labels",
                    "percent",
                ]
            ),
            below,
            max_size=4,
        )
    ),
    max_leaves=25,
)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(PLACES), st.sampled_from(["Fleet", "Image", "App", "Waves", "Site", "Scenario", "Sit"]), junk, junk
)
def test_no_document_of_odd_shape_gets_more_than_problems_out_of_the_loader(
    path: str, kind: str, metadata: Any, spec: Any
) -> None:
    document = {"apiVersion": "fleet/v1", "kind": kind, "metadata": metadata, "spec": spec}
    parsed = parse(path, "blob", json.dumps(document).encode())
    assert (parsed.spec is None) == any(problem.severity == "error" for problem in parsed.problems)
    for problem in parsed.problems:
        assert str(problem).isprintable()
        assert "Input should" not in problem.message
