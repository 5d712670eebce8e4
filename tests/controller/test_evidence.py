"""The words of a proposed revert: what devices say is shown, starts nothing in a forge, and fits into what one takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from reconciler.adapters.github_text import MAX_BODY, fit
from reconciler.adapters.sql import open_store
from reconciler.controller.evidence import Evidence, evidence_of
from reconciler.controller.gather import World
from reconciler.model.observed import DeviceObservation, Snapshot
from reconciler.model.plan import Facts, Plan
from reconciler.repo.scenario_read import read_scenario

NOW = datetime(2026, 1, 15, 12, 0, tzinfo=UTC)
SINCE = "2026-01-15T10:00:00Z"
FAILED = "2026-01-15T11:00:00Z"
SCENARIO = Path("tests/scenarios/a-check-that-got-worse-is-charged-though-the-device-was-critical-before.yaml")
HOSTILE = (
    "@everyone fixes #12 closes GH-3 see https://example.org/o/r/issues/4 [skip ci] <script>alert(1)</script>"
    " ![x](http://example.org/y) | `code` \\ \u202e\x1b[31m\nCo-authored-by: x <x@example.org>"
)


def check(name: str = "video", message: str = "no frames", **more: Any) -> dict[str, Any]:
    return {"name": name, "before": "ok", "now": "critical", "message": message, "since": SINCE} | more


def device(number: int = 1, **more: Any) -> dict[str, Any]:
    checks = more.pop("checks", [check()])
    values = {
        "name": f"SITE-{number:04}-1", "site": f"SITE-{number:04}", "image": "v2", "imageSince": "2026-01-15T09:00:00Z",
        "health": "critical", "healthSince": SINCE, "healthBeforeUpdate": "ok", "checks": checks,
        "checksWorse": [each["name"] for each in checks],
    }  # fmt: skip
    return values | more


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Callable[..., Evidence]]:
    store = open_store(tmp_path / "store.db")

    def of(*devices: dict[str, Any], key: str = "v2", **observed: Any) -> Evidence:
        store.observe([DeviceObservation.model_validate(each) for each in devices], sequences={})
        failures = [
            {"wave": "canary", "image": "v2", "at": FAILED},
            {"wave": "all", "image": "v2", "at": "2026-01-15T11:30:00Z"},
        ]
        snapshot = Snapshot.model_validate({"failures": failures} | observed)
        world = World(NOW, read_scenario(str(SCENARIO), SCENARIO.read_bytes())[0].desired, snapshot, (), False, store)
        return evidence_of(key, "c" * 40, world, Plan(NOW, "c" * 40, (), (), (), Facts()))

    yield of
    store.close()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def rows(body: str, first: str) -> list[list[str]]:
    return [cells(line) for line in body.splitlines() if line.startswith(f"| {first}")]


def test_a_check_is_shown_before_and_after_with_its_times(told: Callable[..., Evidence]) -> None:
    body = told(device(), members={"v2": {"all": ["SITE-0001"]}}).body
    assert rows(body, "`video`") == [["`video`", "ok", "critical", "`no frames`", SINCE]]
    assert (
        f"**SITE-0001-1**: flashed 2026-01-15T09:00:00Z, critical since the report at {SINCE},"
        " gate of wave all failed 2026-01-15T11:30:00Z"
    ) in body.splitlines()
    assert rows(body, "SITE-0001-1")[0][7] == "`video`"


def test_a_site_that_no_record_names_is_told_the_first_failure(told: Callable[..., Evidence]) -> None:
    assert f"gate of wave canary failed {FAILED}" in told(device()).body


def test_a_check_that_was_not_there_and_a_recovered_device(told: Callable[..., Evidence]) -> None:
    body = told(device(checks=[check(before=None, message="")]), device(2, health="ok")).body
    assert rows(body, "`video`") == [["`video`", "not there", "critical", "", SINCE]]
    assert "SITE-0002-1" not in body


def test_a_failed_trial_is_shown_of_a_device_that_went_back(told: Callable[..., Evidence]) -> None:
    gone = device(
        image="v1", health="ok", checks=[check("other")], failedAttempts={"v2": 1}, attemptFailedAt="2026-01-15T10:05:00Z",
        attempt={"release": "v2", "checks": [check()]},
    )  # fmt: skip
    said = told(gone)
    assert rows(said.body, "check") == [["check", "before", "then", "message", "since"]]
    assert rows(said.body, "`video`") == [["`video`", "ok", "critical", "`no frames`", SINCE]]
    assert "during its last attempt at `v2`: attempt failed 2026-01-15T10:05:00Z, gate" in said.body
    assert f"check video: ok before, critical since {SINCE}" in said.message
    assert "other" not in said.body + said.message, "what v1 says is no evidence against v2"
    assert "video" not in told(gone | {"attempt": {"release": "v3", "checks": [check()]}}).body


@pytest.mark.parametrize("where", ["message", "name", "image"])
def test_what_a_device_says_starts_nothing(told: Callable[..., Evidence], where: str) -> None:
    if where == "image":
        said = told(device(image=HOSTILE[:128], failedAttempts={"v2": 1}))
    else:
        said = told(device(checks=[check(**{where: HOSTILE[:64] if where == "name" else HOSTILE[:200]})]))
    for text in (said.body, said.message):
        assert "@" not in text and "#1" not in text and "GH-" not in text and "://" not in text
        assert "\x1b" not in text and "\u202e" not in text
    assert "[" not in said.message and "everyone" in said.message
    for line in said.body.splitlines():
        # Whatever is left of HTML and links stands within code, and every row has the cells of its table.
        assert not re.search(r"[<>\[\]]", re.sub(r"`[^`]*`", "", line))
        if line.startswith("| `"):
            assert len(cells(line)) == 5
        if line.startswith("| SITE"):
            assert len(cells(line)) == 9


def test_the_commits_message_names_some_checks(told: Callable[..., Evidence]) -> None:
    message = told(device(checks=[check(f"c{n}") for n in range(16)])).message
    assert [line[:12] for line in message.splitlines() if line.startswith("  - ")] == [
        *(f"  - check c{n}" for n in range(4)), "  - and 12 m",
    ]  # fmt: skip
    assert "c7 and 8 more" in message


def test_a_fleet_that_is_ill_all_over_fits_uncut(told: Callable[..., Evidence]) -> None:
    checks = [check(f"{n:02}" + "\U0001f4f7" * 62, "\U0001f4f7" * 200) for n in range(16)]
    body = told(*(device(n, checks=checks, failedAttempts={"v2": 2}) for n in range(1, 301))).body
    assert len(body.encode("utf-16-le")) // 2 < MAX_BODY
    assert fit(body) == body
    shown = len(rows(body, "SITE-"))
    assert 20 < shown <= 100
    assert f"And {300 - shown} more devices;" in body
    detailed = body.count("\n**SITE-")
    assert 2 < detailed < shown
    assert f"And those of {300 - detailed} more devices;" in body
    assert len(rows(body, "`00")) == len(rows(body, "`15")) == detailed, "a table is whole or left out"
