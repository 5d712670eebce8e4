"""`reconciler status`: what people read, at any width, with and without colour; and what programs read."""

from __future__ import annotations

import io
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from reconciler.adapters.sql import SqlStore, open_store
from reconciler.cli.main import cli
from reconciler.cli.status_view import bar, clean, view
from reconciler.controller.status import Status, status_of
from reconciler.controller.words import REASONS, countdown, duration
from reconciler.model.plan import (
    Action,
    ActionKind,
    AppStatus,
    DeviceFact,
    Facts,
    Hold,
    Plan,
    Reason,
    WaveState,
    WaveStatus,
)
from reconciler.ports import ConditionRow, Decision, TerminalError
from tests.support.settings import write_settings

NOW = datetime(2026, 1, 15, 1, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)


def wave(name: str, state: WaveState, on_release: int, failed: int = 0, **more: Any) -> WaveStatus:
    return WaveStatus(
        name=name,
        image="v1.4.2",
        state=state,
        sites=4,
        devices=4,
        on_release=on_release,
        healthy=on_release - failed,
        failed=failed,
        offline=more.pop("offline", 0),
        in_flight=more.pop("in_flight", 0),
        soak_ends_at=more.pop("soak_ends_at", None),
        **more,
    )


APP = AppStatus("2.8.0", WaveState.ROLLING, on_release=1, healthy=1, failed=0)
PLAN = Plan(
    at=NOW - timedelta(minutes=2),
    commit="c0ffee",
    actions=(),
    holds=(
        Hold(Reason.SOAKING, "tenth", "v1.4.2", until=NOW + 23 * HOUR + timedelta(minutes=10), message="soaking"),
        Hold(Reason.OFFLINE, "tenth", "v1.4.2", devices=tuple(f"SITE-{n:04d}-1" for n in range(9)), message="x"),
        Hold(Reason.GATE_FAILED, "half", app="video-ingest", release="2.8.0", message="x"),
    ),
    waves=(
        wave("canary", WaveState.SOAKING, 4, soak_ends_at=NOW + HOUR, apps={"video-ingest": APP}),
        wave("tenth", WaveState.FAILED, 1, failed=1, offline=2, in_flight=1),
    ),
    facts=Facts(),
    flagged=(DeviceFact("SITE-2847-1", "v1.4.2", NOW - HOUR),),
)


def filled(store: SqlStore) -> SqlStore:
    """A store after a tick."""
    epoch = store.begin_epoch()
    action = Action(ActionKind.BUILD, {"image": "v1.4.3"})
    ready = ConditionRow("GitReady", "True", "Fetched", "at c0ffee", NOW - HOUR)
    broken = ConditionRow("StoresReady", "False", "Unreachable", "bucket \x1b[31mdoes not\nanswer", NOW - HOUR)
    decision = Decision(NOW - HOUR, "c0ffee", Facts(), actions=(action,), conditions=(ready, broken))
    (intent,) = store.record(epoch, decision)
    store.retry(epoch, intent, "no space left", NOW + timedelta(seconds=40))
    store.accept_commit(epoch, "c0ffee" * 7, NOW - HOUR)
    store.save_plan(epoch, PLAN.to_json())
    return store


@pytest.fixture
def status(tmp_path: Path) -> Status:
    store = filled(open_store(tmp_path / "store.db"))
    found = status_of(store, NOW)
    store.close()
    return found


def shown(status: Status, width: int, *, plain_ascii: bool = False, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False, emoji=False, **options)
    console.print(view(status, width, plain_ascii))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_it_says_all_of_it_in_plain_words(status: Status) -> None:
    text = shown(status, 160)
    for words in (
        "commit c0ffeec0ffee in force; plan unchanged for 2 min; next change 2026-01-16 00:40 UTC (in 23 h 10 min)",
        "soak ends in 1 h",
        "1 failed, 2 offline, 1 in flight",
        "video-ingest 2.8.0",
        "tenth v1.4.2: the soak runs; until 2026-01-16 00:40 UTC (in 23 h 10 min) [soaking]",
        "silent: offered when the device reports; SITE-0000-1, SITE-0001-1",
        "SITE-0005-1 and 3 more",
        "half video-ingest 2.8.0: too many devices failed: the release is stopped [gate-failed]",
        "SITE-2847-1: failed on v1.4.2 for 1 h",
        "build image=v1.4.3; written 1 h ago; tried 1 time, again in 40 s: no space left",
        "GitReady True Fetched for 1 h: at c0ffee",
        "StoresReady False Unreachable for 1 h: bucket  [31mdoes not answer",
    ):
        assert words in text, words


@pytest.mark.slow
@pytest.mark.parametrize("width", [20, 32, 40, 60, 83, 84, 100, 200])
@pytest.mark.parametrize("plain_ascii", [False, True])
def test_nothing_is_wider_than_the_terminal_and_nothing_is_lost(status: Status, width: int, plain_ascii: bool) -> None:
    text = shown(status, width, plain_ascii=plain_ascii)
    assert max(len(line) for line in text.splitlines()) <= width
    flat = re.sub(r"[\s]+", "", text)
    for words in ("canary", "v1.4.2", "soaking", "failed", "SITE-2847-1", "StoresReady", "nospaceleft", "4/4", "1/4"):
        assert words in flat, words
    if plain_ascii:
        text.encode("ascii")


def test_without_colour_there_is_no_escape_and_with_it_the_words_stay(status: Status) -> None:
    plain = shown(status, 120, no_color=True, force_terminal=False)
    coloured = shown(status, 120, force_terminal=True, color_system="truecolor")
    assert "\x1b" not in plain
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain


def test_every_reason_has_its_words() -> None:
    assert set(REASONS) == {reason.value for reason in Reason}


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [
        (0, 4, "............"),
        (1, 100, "#..........."),
        (99, 100, "###########."),
        (4, 4, "############"),
        (0, 0, "." * 12),
    ],
)
def test_a_bar_is_full_only_when_all_is_done(part: int, whole: int, expected: str) -> None:
    assert bar(part, whole, plain_ascii=True) == expected


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (86400, "1 d"),
        (100_000, "1 d 3 h"),
    ],
)
def test_durations_are_said_as_people_say_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_countdowns_look_both_ways() -> None:
    assert [countdown(NOW + timedelta(seconds=s), NOW) for s in (90, 0, -90)] == ["in 1 min", "now", "1 min ago"]


def test_control_characters_of_others_do_not_reach_the_terminal() -> None:
    assert clean("a\x1b]0;title\x07b\nc\u202ed") == "a ]0;title b c d"


def run(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["status", "--config", str(config), *arguments])


def test_programs_get_json_of_everything(tmp_path: Path) -> None:
    config = write_settings(tmp_path)
    filled(open_store(tmp_path / "state" / "store.db")).close()
    found = json.loads(run(config, "--output", "json").stdout)
    assert (found["kind"], found["commit"], found["planAt"]) == ("Status", "c0ffee" * 7, "2026-01-15T01:28:00Z")
    assert [wave["name"] for wave in found["waves"]] == ["canary", "tenth"]
    assert found["flagged"][0]["device"] == "SITE-2847-1"
    assert found["openActions"][0]["lastError"] == "no space left"
    assert {row["type"]: row["status"] for row in found["conditions"]} == {"GitReady": "True", "StoresReady": "False"}
    assert run(config, "--watch", "--output", "json").exit_code == 2


def test_before_the_first_tick_it_says_so(tmp_path: Path) -> None:
    config = write_settings(tmp_path)
    result = run(config)
    assert isinstance(result.exception, TerminalError) and "no store at" in str(result.exception)
    open_store(tmp_path / "state" / "store.db").close()
    result = run(config)
    assert "no commit in force yet" in result.stdout and "No plan yet" in result.stdout


def test_a_stepped_clocks_time_is_the_time(tmp_path: Path) -> None:
    config = write_settings(tmp_path, clock={"type": "stepped", "socket": str(tmp_path / "clock")})
    (tmp_path / "clock.now").write_bytes(struct.pack("<q", int(NOW.timestamp() * 1e6)))
    filled(open_store(tmp_path / "state" / "store.db")).close()
    assert "plan unchanged for 2 min" in run(config).stdout


def test_a_plan_that_is_damaged_is_named(tmp_path: Path) -> None:
    config = write_settings(tmp_path)
    store = open_store(tmp_path / "state" / "store.db")
    store.save_plan(store.begin_epoch(), "{")
    store.close()
    result = run(config)
    assert isinstance(result.exception, TerminalError) and "not JSON" in str(result.exception)


@pytest.mark.slow
def test_watching_shows_what_changes_until_interrupted(tmp_path: Path) -> None:
    config = write_settings(tmp_path)
    store = open_store(tmp_path / "state" / "store.db")
    command = [
        str(Path(sys.executable).with_name("reconciler")),
        "status",
        "--watch",
        "--every",
        "0.2",
        "--config",
        str(config),
    ]
    # A suite that runs in the background hands on that interrupts are ignored; a terminal does not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        signal.signal(signal.SIGINT, before)
        try:
            assert process.stdout is not None and process.stderr is not None
            _until(process, b"No plan yet")
            filled(store)
            _until(process, b"SITE-2847-1: failed on v1.4.2")
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            assert process.stderr.read() == b""
        finally:
            process.kill()
    store.close()


def _until(process: subprocess.Popen[bytes], words: bytes) -> None:
    assert process.stdout is not None
    seen, deadline = b"", time.monotonic() + 60
    while words not in seen:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"{words!r} did not appear in {seen!r}"
        chunk = os.read(process.stdout.fileno(), 65536)
        assert chunk, f"ended without {words!r}: {seen!r}"
        seen += chunk
