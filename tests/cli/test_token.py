"""`reconciler token`: enrolment from the command line, on a real store."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from reconciler.adapters.sql import open_store
from reconciler.cli.main import cli
from reconciler.ports import TerminalError
from reconciler.server.tokens import Scope, hash_token, read_hashes
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
    second = run(config, "operator", "bob", "--file", str(path)).stdout.strip()
    assert read_hashes(path) == {hash_token(first), hash_token(second)}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "# alice, " in path.read_text()
    narrow = run(config, "operator", "checks", "--file", str(path), "--scope", "read").stdout.strip()
    assert read_hashes(path, Scope.READ) == {hash_token(narrow)}
    assert read_hashes(path) == {hash_token(first), hash_token(second)}
    path.write_text("not a hash\n")
    result = run(config, "operator", "eve", "--file", str(path))
    assert isinstance(result.exception, TerminalError) and "is not the sha256" in str(result.exception)
    assert path.read_text() == "not a hash\n"
    assert run(config, "operator", "eve").exit_code == 2
