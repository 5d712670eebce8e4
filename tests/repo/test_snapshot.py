"""Reading snapshots: the contract's example, and every fault at its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.model.observed import Health
from reconciler.repo.json_places import Places
from reconciler.repo.problem import InvalidInput
from reconciler.repo.snapshot import load_snapshot

DIGEST = "sha256:" + "1" * 64
EXAMPLE = {
    "devices": [
        {
            "name": "SITE-2847-1",
            "site": "SITE-2847",
            "image": "v1.4.1",
            "imageSince": "2026-01-02T01:31:00Z",
            "previousImage": "v1.4.0",
            "inactiveSlot": "v1.4.0",
            "health": "ok",
            "healthSince": "2026-01-02T01:35:00Z",
            "healthBeforeUpdate": "ok",
            "lastSeen": "2026-01-15T01:29:30Z",
            "updatingTo": None,
            "updatingSince": None,
            "rebootingSince": None,
            "restartingSince": None,
            "failedAttempts": {"v1.4.2": 1},
            "apps": {"video-ingest": {"digest": DIGEST, "since": "2026-01-02T01:35:00Z"}},
            "config": DIGEST,
        }
    ],
    "artifacts": {"v1.4.1": {"state": "published", "digest": DIGEST}},
    "tags": {"video-ingest": {"canary": DIGEST, "stable": DIGEST}},
    "proofs": [{"wave": "canary", "image": "v1.4.1", "at": "2026-01-01T00:00:00Z", "closed": True}],
    "failures": [{"wave": "canary", "app": "video-ingest", "release": "2.8.0", "at": "2026-01-14T03:00:00Z"}],
    "members": {"v1.4.2": {"tenth": ["SITE-2847"]}},
    "proposals": [{"image": "v1.4.2", "at": "2026-01-14T03:00:05Z"}],
}


def test_the_contracts_example_is_read(tmp_path: Path) -> None:
    path = tmp_path / "observed.json"
    path.write_text(json.dumps(EXAMPLE), encoding="utf-8")
    snapshot = load_snapshot(path)
    assert snapshot.devices[0].health is Health.OK
    assert snapshot.devices[0].failed_attempts == {"v1.4.2": 1}
    assert snapshot.failures[0].key == "video-ingest@2.8.0"
    assert snapshot.proofs[0].closed
    assert load_snapshot(b"{}").devices == ()


@pytest.mark.parametrize(
    ("text", "line", "column", "piece"),
    [
        ("", 1, 1, "not valid JSON"),
        ("{", 1, 2, "not valid JSON"),
        ("[]", 1, 1, "an empty list where a snapshot is expected"),
        ("[" * 200_000, 1, 1, "nested too deep"),
        ('{"devices": NaN}', 1, 13, "NaN is no number"),
        ('{"a": 1,\n "b": 2,\n "a": 3}', 3, 2, "key 'a' is written twice"),
        (
            '{"devices": [{"name": "x", "apps": {}},\n {"name": "y", "name": "z"}]}',
            2,
            16,
            "key 'name' is written twice",
        ),
        ('{"devices": [\n {"name": "a b"}]}', 2, 11, "devices[0].name: 'a b' is not a name"),
        ('{"devices": [\n {"name": "a", "helth": "ok"}]}', 2, 16, "did you mean 'health'?"),
        ('{"devices": [\n {"name": "a",\n "health": "okay"}]}', 3, 12, "did you mean 'ok'?"),
        ('{"devices": [\n {"site": "a"}]}', 2, 2, "devices[0].name is missing"),
        ('{"artifacts": {\n"v1": "publishd"}}', 2, 1, "did you mean 'published'?"),
        ('{"artifacts": {\n"1": "built"}}', 2, 1, "'1' is not a release"),
        ('{"proofs": [{"wave": "w", "image": "v1",\n "at": "today"}]}', 2, 8, "'today' is not an instant"),
        ('{"tags": {"x":\n  {"y": "sha256:1"}}}', 2, 9, "is not a digest"),
        ('{"devices": {"a": 1}}', 1, 13, "a list is expected"),
        ('{"device": []}', 1, 2, "did you mean 'devices'?"),
        ('{"devices": [{"name": "a", "failed_attempts": {}}]}', 1, 28, "did you mean 'failedAttempts'?"),
        ('{"a\\nb": 1}', 1, 2, "unknown key"),
    ],
)
def test_a_fault_is_told_where_it_is(text: str, line: int, column: int, piece: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        load_snapshot(text.encode(), "observed.json")
    told = [str(problem) for problem in refused.value.problems]
    assert any(one.startswith(f"observed.json:{line}:{column}: ") and piece in one for one in told), told
    assert all("\n" not in one for one in told)


@pytest.mark.parametrize("count", ["-1", "1.0", "true", "99999999999999999999", '"many"'])
def test_attempts_are_counted_in_whole_numbers(count: str) -> None:
    text = f'{{"devices": [{{"name": "A", "failedAttempts": {{"v2": {count}}}}}]}}'
    with pytest.raises(InvalidInput) as invalid:
        load_snapshot(text.encode())
    (problem,) = invalid.value.problems
    assert (problem.line, problem.column) == (1, text.index(count) + 1)
    assert "whole number" in problem.message


@pytest.mark.parametrize(
    "of",
    [{}, {"app": "video-ingest"}, {"release": "2.8.0"}, {"image": "v2", "app": "video-ingest", "release": "2.8.0"}],
)
@pytest.mark.parametrize("place", ["proofs", "failures", "proposals"])
def test_what_is_on_record_names_one_release(place: str, of: dict[str, str]) -> None:
    wave = {} if place == "proposals" else {"wave": "canary"}
    with pytest.raises(InvalidInput, match="either `image`, or `app` and its `release`"):
        load_snapshot(json.dumps({place: [{"at": "2026-01-01T00:00:00Z", **wave, **of}]}).encode())


def test_null_is_what_a_device_has_not_said() -> None:
    said = dict.fromkeys(EXAMPLE["devices"][0])  # type: ignore[call-overload]
    snapshot = load_snapshot(json.dumps({"devices": [{**said, "name": "A"}]}).encode())
    assert snapshot == load_snapshot(b'{"devices": [{"name": "A"}]}')


def test_words_and_numbers_that_json_has_not_are_told_where_they_are() -> None:
    for text, column in ((b'{"a": "NaN",\n "b": NaN}', 7), (b'{"a": "",\n "b": ' + b"9" * 5000 + b"}", 7)):
        with pytest.raises(InvalidInput) as invalid:
            load_snapshot(text)
        assert [(problem.line, problem.column) for problem in invalid.value.problems] == [(2, column)]


def test_bytes_that_are_no_text_and_files_that_are_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"snapshot:2:2: not UTF-8"):
        load_snapshot(b'{\n"\xff"}')
    with pytest.raises(InvalidInput, match="cannot be read"):
        load_snapshot(tmp_path / "none.json")
    with pytest.raises(InvalidInput, match="cannot be read"):
        load_snapshot(tmp_path)


def test_of_a_thousand_problems_the_first_are_shown() -> None:
    data = json.dumps({"devices": [{"name": f"a {number}"} for number in range(1000)]}).encode()
    with pytest.raises(InvalidInput) as refused:
        load_snapshot(data)
    assert len(refused.value.problems) == 201
    assert any("1000 problems in all" in problem.message for problem in refused.value.problems)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=6), below, max_size=4),
    max_leaves=20,
)


def _ways(tree: Any, way: tuple[str | int, ...] = ()) -> dict[tuple[str | int, ...], Any]:
    found = {way: tree}
    for key, below in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        found |= _ways(below, (*way, key))
    return found


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(values, st.sampled_from([None, 1]), st.booleans())
def test_every_entry_of_any_json_is_found_at_its_value(tree: Any, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(tree, indent=indent, ensure_ascii=ascii_only)
    ways = _ways(tree)
    spots = Places(text).find(ways).spots
    assert set(spots) == set(ways)
    lines = text.split("\n")
    for way, spot in spots.items():
        rest = "\n".join([lines[spot.line - 1][spot.column - 1 :], *lines[spot.line :]])
        assert json.JSONDecoder().raw_decode(rest)[0] == ways[way]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | values.map(lambda value: json.dumps({"devices": value, "tags": value}).encode()))
def test_nothing_but_problems_comes_of_any_bytes(data: bytes) -> None:
    try:
        load_snapshot(data)
    except InvalidInput as refused:
        assert refused.problems
        assert all(str(problem).isprintable() for problem in refused.problems)
