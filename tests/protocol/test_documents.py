"""Reports, assignments, envelopes, manifests and sums: what is written is read back, what is wrong is named and
refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.protocol import canonical
from reconciler.protocol.assignment import Assignment, AssignmentError
from reconciler.protocol.canonical import Malformed, clip, dump, format_instant, load, parse_instant
from reconciler.protocol.exchange import Answer, SiteConfig
from reconciler.protocol.manifest import Manifest, ManifestError
from reconciler.protocol.report import (
    MAX_REPORT_BYTES,
    Check,
    Refusal,
    Report,
    ReportError,
    Slot,
    overall,
    worse_checks,
)
from reconciler.protocol.sums import SumsError, format_sums, parse_sums

FOLDER = Path(__file__).parent / "previous"
ONE = "sha256:" + "1" * 64
text = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=40)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}", fullmatch=True)
digests = st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)
serials = st.tuples(st.integers(0, 2**53 - 1), st.integers(0, 2**53 - 1))
checks = st.lists(
    st.builds(Check, text, st.sampled_from(("ok", "warning", "critical", "unknown")), text | st.just("")),
    max_size=8,
    unique_by=lambda check: check.name,
).map(tuple)
slots = st.builds(Slot, st.none() | text, st.none() | digests, st.booleans())
reports = st.builds(
    Report,
    device=names,
    site=names,
    boot_id=text,
    sequence=st.integers(0, 2**53 - 1),
    serial=st.none() | serials,
    booted=st.sampled_from(("a", "b")),
    slots=st.fixed_dictionaries({"a": slots, "b": slots}),
    image=st.none() | text,
    previous=st.none() | text,
    phase=st.sampled_from(("idle", "writing", "trial")),
    target=st.none() | text,
    health=st.sampled_from(("ok", "critical")),
    checks=checks,
    checks_before=checks,
    config=st.none() | digests,
    apps=st.dictionaries(text, digests, max_size=4),
    attempts=st.dictionaries(text, st.integers(0, 1000), max_size=4),
    refusals=st.lists(st.builds(Refusal, text, text, st.none() | serials), max_size=4).map(tuple),
    agent=text,
)


@pytest.mark.slow
@given(reports)
def test_a_report_is_read_back_as_it_was_written(report: Report) -> None:
    assert Report.from_bytes(report.to_bytes()) == report


@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_no_bytes_make_a_parser_raise_anything_else(data: bytes) -> None:
    for parse in (Report.from_bytes, Assignment.from_bytes, Answer.from_bytes, SiteConfig.from_bytes, parse_sums):
        with pytest.raises(Malformed):
            parse(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(("report", "assignment")), st.data())
def test_any_key_may_hold_anything_and_is_judged(kind: str, data: st.DataObject) -> None:
    value = json.loads((FOLDER / f"{kind}-1.0.json").read_bytes())
    value[data.draw(st.sampled_from(sorted(value)))] = data.draw(JSON)
    document = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    try:
        (Report if kind == "report" else Assignment).from_bytes(document)
    except (ReportError, AssignmentError) as error:
        assert error.reason


LONG = "x" * 600


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("device", "SITE 1", "`device`"),
        ("device", "../etc", "`device`"),
        ("site", None, "`site`"),
        ("bootId", "", "`bootId`"),
        ("bootId", "a\x00b", "control characters"),
        ("sequence", -1, "`sequence`"),
        ("sequence", True, "`sequence`"),
        ("sequence", 1.0, "`sequence`"),
        ("serial", [1], "`serial`"),
        ("serial", [1, True], "`serial`"),
        ("booted", "c", "one of a, b"),
        ("slots", {"c": {"good": True}}, "slots a and b"),
        ("slots", {"a": {"digest": "sha256:x", "good": True}}, "`digest`"),
        ("slots", {"a": {"good": "yes"}}, "`good`"),
        ("slots", {"a": 1}, "slot a is not an object"),
        ("phase", "dancing", "`phase`"),
        ("health", "great", "`health`"),
        ("checks", [{"name": "disk", "status": "ok"}] * 2, "twice"),
        ("checks", [{"name": "disk", "status": "skipped"}], "`status`"),
        ("checks", [{"name": "disk", "status": "ok", "message": LONG}], "`message`"),
        ("checks", {}, "`checks`"),
        ("checks", [{"name": str(n), "status": "ok"} for n in range(65)], "at most 64"),
        ("config", "abc", "`config`"),
        ("apps", {"video": "latest"}, "'video'"),
        ("apps", {str(n): ONE for n in range(33)}, "at most 32"),
        ("attempts", {"v1": -1}, "'v1'"),
        ("attempts", {"v1": "1"}, "'v1'"),
        ("attempts", {LONG: 1}, "`attempts`"),
        ("refusals", [{"code": "x"}], "`reason` is missing"),
        ("refusals", [{"code": "x", "reason": "y"}] * 17, "at most 16"),
        ("image", "\ud800", "control characters"),
    ],
)
def test_a_report_names_what_is_wrong(key: str, value: Any, says: str) -> None:
    document = json.loads((FOLDER / "report-1.0.json").read_bytes())
    document[key] = value
    with pytest.raises(ReportError) as caught:
        Report.from_bytes(json.dumps(document).encode())
    assert says in caught.value.reason
    assert len(caught.value.reason) < 400


def test_a_report_is_bounded_both_ways() -> None:
    with pytest.raises(ReportError, match="at most 65536"):
        Report.from_bytes(b" " * (MAX_REPORT_BYTES + 1))
    many = tuple(Check(str(n), "ok", "x" * 2000) for n in range(60))
    with pytest.raises(ReportError, match="at most 65536"):
        Report("D", "S", "b", 1, checks=many).to_bytes()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'{"a":1,"a":2}', "'a' appears twice"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":' + b"9" * 5000 + b"}", "out of range"),
        (b'{"a":99999999999999999}', "out of range"),
        (b"[" * 100_000, "JSON"),
        (b'{"a":' + b"[" * 20 + b"]" * 20 + b"}", "deeper than 16"),
        (b"3", "not an object"),
        (b"\xff", "not JSON"),
    ],
)
def test_json_that_is_not_taken(data: bytes, says: str) -> None:
    with pytest.raises(Malformed, match=says):
        load(data, 200_000, "it")


def test_one_meaning_has_one_form() -> None:
    assert dump({"b": [1, None, True], "a": "é"}) == b'{"a":"\\u00e9","b":[1,null,true]}'
    for data in (b'{"a": 1}', b'{"b":1,"a":2}', b'{"a":1}\n', '{"a":"é"}'.encode()):
        with pytest.raises(Malformed, match="canonical"):
            canonical.load_canonical(data, 100, "it")
    with pytest.raises(Malformed, match="whole number"):
        canonical.load_canonical(b'{"a":1.0}', 100, "it")
    deep: list[Any] = []
    for _ in range(20):
        deep = [deep]
    with pytest.raises(Malformed, match="deeper"):
        dump(deep)


def test_instants() -> None:
    assert format_instant(datetime(2026, 1, 15, 2, 30, tzinfo=timezone(timedelta(hours=1)))) == "2026-01-15T01:30:00Z"
    at = datetime(2026, 1, 15, 1, 30, 0, 5, tzinfo=UTC)
    assert parse_instant(format_instant(at)) == at
    for bad in ("2026-01-15", "2026-01-15T01:30:00", "2026-13-15T01:30:00Z", 1, None, "2026-01-15T01:30:00Z\n"):
        with pytest.raises(ValueError, match=r".+"):
            parse_instant(bad)
    with pytest.raises(ValueError, match="no offset"):
        format_instant(datetime(2026, 1, 15))


def test_text_from_elsewhere_is_made_fit() -> None:
    assert clip("a\x00b\nc", 10) == "a?b\nc"
    assert clip("x" * 20, 10) == "xxxxxxx..."


# ---------------------------------------------------------------- health


def test_warning_counts_as_good_and_worse_is_by_check() -> None:
    def one(status: str) -> list[Check]:
        return [Check("disk", status)]

    assert worse_checks(one("ok"), one("warning")) == ()
    assert worse_checks(one("warning"), one("critical")) == ("disk",)
    assert worse_checks(one("ok"), one("unknown")) == ("disk",)
    assert worse_checks(one("critical"), one("critical")) == ()
    assert worse_checks(one("unknown"), one("critical")) == ("disk",)
    assert worse_checks([], one("critical")) == ("disk",)
    assert worse_checks(one("ok"), []) == ()
    assert [overall(one(s)) for s in ("ok", "warning", "critical", "unknown")] == [
        "ok",
        "warning",
        "critical",
        "unknown",
    ]
    assert overall([]) == "unknown"
    assert overall([Check("a", "warning"), Check("b", "ok")]) == "warning"


# ---------------------------------------------------------------- assignments


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"type": "report"}, "`type`"),
        ({"expiresAt": "2026-01-15T01:30:00Z"}, "not after"),
        ({"issuedAt": "yesterday"}, "`issuedAt`"),
        ({"image": {"release": "1.4.2", "digest": ONE, "folder": "f"}}, "`release`"),
        ({"image": {"release": "v1", "digest": ONE, "folder": "../up"}}, "`folder`"),
        ({"image": {"release": "v1", "digest": ONE, "folder": ".."}}, "`folder`"),
        ({"image": "v1"}, "not an object"),
        ({"apps": {"a b": {}}}, "'a b'"),
        ({"apps": {"a": {"repository": "UP", "tag": "t", "digest": ONE, "version": "1"}}}, "`repository`"),
        ({"apps": {"a": {"repository": "r", "tag": "-t", "digest": ONE, "version": "1"}}}, "`tag`"),
        ({"apps": {"a": {"repository": "r", "tag": "t", "digest": ONE, "version": "a/b"}}}, "`version`"),
        ({"window": [["2026-01-15T01:30:00Z"]]}, "start, end"),
        ({"window": [["2026-01-15T01:30:00Z", "2026-01-15T01:30:00Z"]]}, "empty"),
        ({"window": [["x", "y"]]}, "instant"),
        (
            {
                "window": [
                    ["2026-01-16T01:30:00Z", "2026-01-16T02:30:00Z"],
                    ["2026-01-15T01:30:00Z", "2026-01-15T02:30:00Z"],
                ]
            },
            "ascending",
        ),
        ({"windowWaived": 1}, "`windowWaived`"),
        ({"serial": None}, "`serial`"),
    ],
)
def test_an_assignment_names_what_is_wrong(change: dict[str, Any], says: str) -> None:
    document = json.loads((FOLDER / "assignment-1.0.json").read_bytes())
    with pytest.raises(AssignmentError) as caught:
        Assignment.from_bytes(dump({**document, **change}))
    assert says in caught.value.reason


def test_windows_are_half_open() -> None:
    assignment = Assignment.from_bytes((FOLDER / "assignment-1.0.json").read_bytes())
    (start, end), _ = assignment.window
    second = timedelta(seconds=1)
    assert [assignment.open_at(at) for at in (start - second, start, end - second, end)] == [False, True, True, False]


# ---------------------------------------------------------------- envelopes


def test_an_answer_is_read_back_and_hides_its_token() -> None:
    at = datetime(2026, 1, 15, tzinfo=UTC)
    answer = Answer(None, {"image": ("https://h/f/",), "registry": ("http://127.0.0.1:5000",)}, 30, at, "secret")
    assert Answer.from_bytes(answer.to_bytes()) == answer
    assert Answer.from_bytes(b'{"reportEvery":60,"more":1.5}') == Answer()
    assert "secret" not in repr(answer)


@pytest.mark.parametrize(
    "value",
    [
        {"reportEvery": 0},
        {"reportEvery": 60, "sources": {"image": ["javascript:1"]}},
        {"reportEvery": 60, "sources": {"image": ["https://h/a b"]}},
        {"reportEvery": 60, "sources": {"image": "https://h/"}},
        {"reportEvery": 60, "bundle": {}},
        {"reportEvery": 60, "bundle": []},
        {"reportEvery": 60, "serverTime": 5},
    ],
)
def test_answers_that_are_not_taken(value: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        Answer.from_bytes(json.dumps(value).encode())


def test_a_site_configuration_is_read_back_and_shown_nowhere() -> None:
    config = SiteConfig(ONE, {"user-data": "password: hunter2 é\n".encode(), "meta-data": b"m", "network-config": b""})
    assert SiteConfig.from_bytes(config.to_bytes()) == config
    assert "hunter2" not in repr(config)


@pytest.mark.parametrize(
    "value",
    [
        {"digest": ONE, "files": {"user-data": "hunter2"}},
        {"digest": ONE, "files": {"user-data": "hunter2", "meta-data": "", "../x": "hunter2"}},
        {"digest": ONE, "files": {"user-data": 5, "meta-data": ""}},
        {"digest": ONE, "files": {"user-data": "\ud800hunter2", "meta-data": ""}},
        {"digest": "x", "files": {"user-data": "hunter2", "meta-data": ""}},
        {"files": 5},
    ],
)
def test_site_configurations_that_are_not_taken_are_not_quoted(value: dict[str, Any]) -> None:
    with pytest.raises(Malformed) as caught:
        SiteConfig.from_bytes(json.dumps(value).encode())
    assert "hunter2" not in str(caught.value)


# ---------------------------------------------------------------- manifests and sums


def test_a_manifest_is_read_back_with_what_it_says_besides() -> None:
    manifest = Manifest("v1.4.2", "e.img.zst", 10, "zstd", 100, ONE, {"commit": "abc", "packages": {"a": "1"}})
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    assert manifest.to_bytes().endswith(b"\n")


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "x"},
        {"protocol": 2},
        {"file": "a/b"},
        {"file": ".hidden"},
        {"size": 0},
        {"imageSize": 2**53 - 1},
        {"compression": "xz"},
        {"compression": "none"},
        {"digest": "md5:1"},
    ],
)
def test_manifests_that_are_not_taken(change: dict[str, Any]) -> None:
    value = json.loads(Manifest("v1.4.2", "e.img.zst", 10, "zstd", 100, ONE).to_bytes())
    with pytest.raises(ManifestError):
        Manifest.from_bytes(dump({**value, **change}))


def test_sums_are_written_as_sha256sum_reads_them() -> None:
    data = format_sums({"b.img": "2" * 64, "a.json": "1" * 64})
    assert data == (f"{'1' * 64}  a.json\n{'2' * 64}  b.img\n").encode()
    assert parse_sums(data.replace(b"  b", b" *b")) == {"a.json": "1" * 64, "b.img": "2" * 64}


LINE = "1" * 64 + "  a\n"


@pytest.mark.parametrize(
    "text",
    ["", LINE[:-1], LINE + LINE, "\n" + LINE, LINE + "\n", LINE.replace("  ", " "), LINE.replace("1", "A"),
     LINE.replace("a\n", "../a\n"), LINE.replace("a\n", "a\r\n"), LINE.replace("a\n", "é\n"), "# x\n",
     "".join(f"{'1' * 64}  f{n}\n" for n in range(257)), LINE * 2000],
)  # fmt: skip
def test_sums_that_are_not_taken(text: str) -> None:
    with pytest.raises(SumsError):
        parse_sums(text.encode())


@pytest.mark.parametrize("names", [{"../a": "1" * 64}, {"a": "short"}, {}])
def test_sums_that_are_not_written(names: dict[str, str]) -> None:
    with pytest.raises(SumsError):
        format_sums(names)


def test_previous_files_are_in_canonical_form() -> None:
    parsers: dict[str, Callable[[bytes], Any]] = {"report": Report.from_bytes, "assignment": Assignment.from_bytes}
    for kind, parse in parsers.items():
        data = (FOLDER / f"{kind}-1.0.json").read_bytes()
        assert parse(data).to_bytes() == data
