"""`reconciler token`: enrolment from the command line, on a real store."""

from __future__ import annotations

import json
import os
import pwd
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from reconciler.adapters.sql import open_store
from reconciler.cli.main import cli
from reconciler.model.access import OperatorToken, Scope
from reconciler.ports import TerminalError
from reconciler.server.tokens import FileToken, hash_token, read_operators
from tests.support.settings import write_settings


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_settings(tmp_path)


def run(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["token", *arguments, "--config", str(config)])


def test_a_token_is_printed_once_and_only_its_hash_is_kept(config: Path) -> None:
    result = run(config, "add", "SITE-2847-1", "SITE-2847-2")
    assert result.exit_code == 0, result.output
    rows = [line.split(" ") for line in result.stdout.splitlines()]
    assert [device for device, _ in rows] == ["SITE-2847-1", "SITE-2847-2"]
    place = config.parent / "state" / "store.db"
    store = open_store(place)
    for device, token in rows:
        assert store.device_of_token(hash_token(token)) == device
    store.close()
    for file in place.parent.iterdir():
        assert rows[0][1].encode() not in file.read_bytes()


def test_tokens_go_to_files_of_their_owner_alone(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "handout"
    result = run(config, "add", "A-1", "--out", str(out))
    assert result.stdout == f"{out}/A-1.token\n"
    path = out / "A-1.token"
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(out.stat().st_mode)) == (0o600, 0o700)
    assert path.read_text().strip() not in result.output


def test_enrolling_again_needs_to_be_said(config: Path, tmp_path: Path) -> None:
    first = run(config, "add", "A-1").stdout.split()[1]
    again = run(config, "add", "B-1", "A-1")
    assert isinstance(again.exception, TerminalError) and "A-1: enrolled already" in str(again.exception)
    assert json.loads(run(config, "list", "--output", "json").stdout)[0]["device"] == "A-1"
    assert "B-1" not in run(config, "list").stdout
    second = run(config, "add", "A-1", "--replace", "--out", str(tmp_path)).stdout.strip()
    store = open_store(config.parent / "state" / "store.db")
    assert store.device_of_token(hash_token(first)) is None
    assert store.device_of_token(hash_token(Path(second).read_text().strip())) == "A-1"
    store.close()


def test_a_file_that_cannot_be_written_enrols_nobody(config: Path, tmp_path: Path) -> None:
    (tmp_path / "B-1.token").write_text("an older one\n")
    result = run(config, "add", "A-1", "B-1", "--out", str(tmp_path))
    assert isinstance(result.exception, TerminalError) and "File exists" in str(result.exception)
    assert run(config, "list").stdout == ""
    assert not (tmp_path / "A-1.token").exists()
    assert (tmp_path / "B-1.token").read_text() == "an older one\n"
    (tmp_path / "file").write_text("")
    result = run(config, "add", "A-1", "--out", str(tmp_path / "file" / "below"))
    assert isinstance(result.exception, TerminalError) and "cannot make" in str(result.exception)


def test_revoking_is_all_or_nothing(config: Path) -> None:
    run(config, "add", "A-1", "B-1")
    result = run(config, "revoke", "A-1", "C-1")
    assert isinstance(result.exception, TerminalError) and "C-1: no token" in str(result.exception)
    assert len(run(config, "list").stdout.splitlines()) == 2
    assert run(config, "revoke", "A-1", "B-1").stdout == "A-1 revoked\nB-1 revoked\n"
    assert run(config, "list").stdout == ""


def test_what_is_no_name_is_wrong_usage(config: Path) -> None:
    for name in ("../etc", "a b", "-", "x" * 64):
        result = run(config, "add", "--", name)
        assert result.exit_code == 2, name
    assert run(config, "add").exit_code == 2


def test_without_a_store_there_is_nothing_to_list(config: Path) -> None:
    result = run(config, "list")
    assert isinstance(result.exception, TerminalError) and "no store at" in str(result.exception)
    assert not (config.parent / "state").exists()


def test_an_operators_token_is_added_to_their_file(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "operators"
    first = run(config, "operator", "alice", "--file", str(path)).stdout.strip()
    second = run(config, "operator", "bob", "--file", str(path), "--scope", "read,acknowledge").stdout.strip()
    assert read_operators(path) == (
        FileToken(hash_token(first), frozenset({Scope.ALL}), "alice"),
        FileToken(hash_token(second), frozenset({Scope.READ, Scope.ACKNOWLEDGE}), "bob"),
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "not in the audit log: no store" in run(config, "operator", "carl", "--file", str(path)).stderr
    path.write_text("not a hash\n")
    result = run(config, "operator", "eve", "--file", str(path))
    assert isinstance(result.exception, TerminalError) and "is not the sha256" in str(result.exception)
    assert path.read_text() == "not a hash\n"
    for more in (["--expires", "90d"], ["--replace"]):
        assert run(config, "operator", "eve", "--file", str(path), *more).exit_code == 2


def test_a_token_in_a_file_stands_in_the_audit_log_of_the_controller_here(config: Path, tmp_path: Path) -> None:
    run(config, "operator", "anna")
    made = run(config, "operator", "bob", "--scope", "read", "--file", str(tmp_path / "operators"))
    assert "bob may do with it: read; until it is taken out of the file" in made.stderr and "audit" not in made.stderr
    shown = CliRunner().invoke(cli, ["audit", "--config", str(config), "--output", "json"]).stdout
    about = [row["about"] for row in json.loads(shown) if row["what"] == "make-token"]
    assert f"operator bob: read, in {tmp_path / 'operators'}, until it is taken out" in about
    assert made.stdout.strip() not in shown


def people(config: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run(config, "list", "--kind", "operator", "--output", "json").stdout)
    return found


def test_an_operators_token_is_kept_as_a_hash_with_scopes_and_an_end(config: Path) -> None:
    result = run(config, "operator", "anna", "--scope", "read,acknowledge", "--expires", "30d")
    token = result.stdout.strip()
    assert "anna may do with it: acknowledge, read; until" in result.stderr
    assert token not in result.stderr
    store = open_store(config.parent / "state" / "store.db")
    kept = store.access.operator(hash_token(token))
    store.close()
    assert kept is not None and kept.expires_at is not None
    assert (kept.name, kept.scopes) == ("anna", {Scope.READ, Scope.ACKNOWLEDGE})
    assert kept.expires_at - kept.created_at == timedelta(days=30)
    (row,) = people(config)
    assert (row["scopes"], row["state"], row["lastUsedAt"]) == (["acknowledge", "read"], "good", None)
    for file in (config.parent / "state").iterdir():
        assert token.encode() not in file.read_bytes()


def test_a_token_ends_after_ninety_days_unless_something_else_is_said(config: Path) -> None:
    made = json.loads(run(config, "operator", "anna", "--output", "json").stdout)
    assert (made["name"], made["scopes"], made["token"][:5]) == ("anna", ["all"], "edge_")
    left = datetime.fromisoformat(made["expiresAt"]) - datetime.now(UTC)
    assert timedelta(days=89) < left <= timedelta(days=90)
    assert (
        json.loads(run(config, "operator", "ben", "--expires", "never", "--output", "json").stdout)["expiresAt"] is None
    )


@pytest.mark.parametrize("more", [["--scope", "reed"], ["--scope", ""], ["--expires", "soon"], ["--expires", "0s"]])
def test_what_no_token_can_be_is_wrong_usage(config: Path, more: list[str]) -> None:
    assert run(config, "operator", "anna", *more).exit_code == 2
    assert not (config.parent / "state").exists()


def test_the_list_marks_what_ends_soon_and_shows_what_stands_in_the_file(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "operators"
    run(config, "operator", "grafana", "--scope", "metrics", "--file", str(path))
    write_settings(config.parent, server={"operators": str(path)})
    run(config, "operator", "anna", "--expires", "never")
    run(config, "operator", "ben", "--expires", "13d", "--scope", "read")
    run(config, "operator", "carl", "--expires", "15d")
    run(config, "operator", "eve")
    run(config, "revoke", "eve")
    run(config, "add", "A-1")
    store = open_store(config.parent / "state" / "store.db")
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    store.access.add_operator(
        "dd", OperatorToken("dora", frozenset({Scope.READ}), long_ago, long_ago + timedelta(days=90))
    )
    store.close()
    states = {row["name"]: row["state"] for row in people(config)}
    assert states == {
        "anna": "good", "ben": "expires soon", "carl": "good", "dora": "expired", "eve": "revoked", "grafana": "in the file"
    }  # fmt: skip
    lines = run(config, "list").stdout.splitlines()
    assert lines[0].split() == ["OPERATOR", "SCOPES", "EXPIRES", "LAST", "USED", "STATE"]
    assert lines[1].split() == ["anna", "all", "never", "-", "good"]
    assert lines[2].endswith("expires soon")
    assert lines[-1].startswith("A-1  20")


def test_a_name_has_one_good_token(config: Path) -> None:
    first = run(config, "operator", "anna").stdout.strip()
    again = run(config, "operator", "anna")
    assert isinstance(again.exception, TerminalError) and "give --replace" in str(again.exception)
    second = run(config, "operator", "anna", "--replace").stdout.strip()
    store = open_store(config.parent / "state" / "store.db")
    assert [store.access.operator(hash_token(token)) is not None for token in (first, second)] == [False, True]
    store.close()


def test_revoking_takes_devices_and_operators_and_asks_where_a_name_is_both(config: Path) -> None:
    run(config, "add", "A-1", "both")
    run(config, "operator", "anna")
    run(config, "operator", "both")
    result = run(config, "revoke", "A-1", "both")
    assert result.exit_code == 2 and "say which by --kind" in result.output
    told = run(config, "revoke", "A-1", "anna", "--output", "json").stdout
    assert json.loads(told) == [
        {"kind": "device", "name": "A-1", "revoked": True},
        {"kind": "operator", "name": "anna", "revoked": True},
    ]
    assert run(config, "revoke", "both", "--kind", "operator").exit_code == 0
    assert "both" in run(config, "list", "--kind", "device").stdout
    assert {row["state"] for row in people(config)} == {"revoked"}
    gone = run(config, "revoke", "anna")
    assert isinstance(gone.exception, TerminalError) and "anna: no token" in str(gone.exception)


def test_what_is_made_and_revoked_is_in_the_audit_log(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The environment may say anything.
    monkeypatch.setenv("LOGNAME", "somebody")
    run(config, "operator", "anna", "--scope", "read", "--expires", "never")
    run(config, "add", "A-1")
    run(config, "revoke", "anna")
    result = CliRunner().invoke(cli, ["audit", "--config", str(config), "--since", "1h", "--output", "json"])
    rows = json.loads(result.stdout)
    assert [(row["what"], row["about"], row["address"], row["outcome"]) for row in rows] == [
        ("revoke-token", "operator anna", "local", "done"),
        ("make-token", "device A-1", "local", "done"),
        ("make-token", "operator anna: read, for good", "local", "done"),
    ]
    assert rows[0]["who"] == pwd.getpwuid(os.getuid()).pw_name
    text = CliRunner().invoke(cli, ["audit", "--config", str(config), "--limit", "1"]).stdout
    assert text.split()[1:] == [pwd.getpwuid(os.getuid()).pw_name, "local", "revoke-token", "done", "operator", "anna"]
    later = CliRunner().invoke(cli, ["audit", "--config", str(config), "--since", "2199-01-01T00:00:00Z"])
    assert (later.exit_code, later.stdout) == (0, "")
    assert CliRunner().invoke(cli, ["audit", "--config", str(config), "--since", "lately"]).exit_code == 2


def test_devices_tokens_are_told_as_json_too(config: Path, tmp_path: Path) -> None:
    (row,) = json.loads(run(config, "add", "A-1", "--output", "json").stdout)
    assert (row["device"], row["token"][:5]) == ("A-1", "edge_")
    (row,) = json.loads(run(config, "add", "B-1", "--out", str(tmp_path), "--output", "json").stdout)
    assert row == {"device": "B-1", "file": f"{tmp_path}/B-1.token"}
