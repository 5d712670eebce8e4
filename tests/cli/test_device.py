"""`reconciler device enrol`: what it writes is what the agent reads, and what an install disk takes."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from reconciler.adapters.sql import open_store
from reconciler.agent.settings import read_settings
from reconciler.cli.main import cli
from reconciler.image.enrolment import read_enrolment
from reconciler.ports import TerminalError
from reconciler.server.tokens import hash_token
from tests.support.settings import write_settings

FLEET = Path(__file__).parents[2] / "fleet"
SERVER = "https://reconciler.example/"
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMII…\n-----END CERTIFICATE-----\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_settings(tmp_path)


def enrol(config: Path, *arguments: str | Path, server: str | None = SERVER) -> Result:
    where = ["--server", server] if server else []
    words = ["device", "enrol", *map(str, arguments), "--fleet", str(FLEET), *where, "--config", str(config)]
    return CliRunner().invoke(cli, words)


def hashes(config: Path) -> dict[str, object]:
    store = open_store(config.parent / "state" / "store.db")
    try:
        return dict(store.tokens())
    finally:
        store.close()


def test_the_folder_holds_what_the_agent_reads(config: Path, tmp_path: Path) -> None:
    out, authority = tmp_path / "enrol", tmp_path / "authority.pem"
    authority.write_text(CERTIFICATE)
    result = enrol(config, "SITE-2847-2", "--out", out, "--ca", authority)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [str(out / name) for name in ("agent.json", "ca.pem", "token")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o600}
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    told = json.loads((out / "agent.json").read_text())
    assert told == {
        "device": "SITE-2847-2",
        "site": "SITE-2847",
        "server": SERVER,
        "tokenFile": "/var/lib/edge-agent/token",
        "hardware": "partitions",
        "caFile": "/var/lib/edge-agent/ca.pem",
    }
    token = (out / "token").read_text().strip()
    assert token not in result.output
    store = open_store(config.parent / "state" / "store.db")
    assert store.device_of_token(hash_token(token)) == "SITE-2847-2"
    store.close()
    # As on the device, but for where the files lie here.
    settings = read_settings(out / "agent.json", {"tokenFile": str(out / "token"), "caFile": str(out / "ca.pem")})
    assert (settings.identity.device, settings.identity.site) == ("SITE-2847-2", "SITE-2847")
    assert (settings.hardware, settings.server.token) == ("partitions", token)
    assert read_enrolment(out).device == "SITE-2847-2"


def test_the_address_is_that_of_the_settings_unless_it_is_said(tmp_path: Path) -> None:
    config = write_settings(tmp_path, server={"publicUrl": "https://edge.example:8443"})
    assert enrol(config, "SITE-2847-1", "--out", tmp_path / "e", server=None).exit_code == 0
    assert json.loads((tmp_path / "e" / "agent.json").read_text())["server"] == "https://edge.example:8443"


def test_without_an_address_nothing_is_made(config: Path, tmp_path: Path) -> None:
    result = enrol(config, "SITE-2847-1", "--out", tmp_path / "e", server=None)
    assert result.exit_code == 2 and "no `server.publicUrl`: say with --server" in result.stderr
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("server", ["http://reconciler.example", "reconciler.example", "https://", "https://u:p@h/"])
def test_an_address_that_no_agent_would_report_to_is_refused(server: str, config: Path, tmp_path: Path) -> None:
    result = enrol(config, "SITE-2847-1", "--out", tmp_path / "e", server=server)
    assert isinstance(result.exception, TerminalError) and "https://" in str(result.exception)
    assert not (tmp_path / "e").exists()
    assert not (config.parent / "state" / "store.db").exists() or not hashes(config)


def test_a_device_of_no_site_is_refused_with_the_nearest(config: Path, tmp_path: Path) -> None:
    result = enrol(config, "SITE-2847-3", "--out", tmp_path / "e")
    assert result.exit_code == 2
    assert "has a device 'SITE-2847-3'; did you mean 'SITE-2847-" in result.stderr
    nowhere = CliRunner().invoke(cli, ["device", "enrol", "X-1", "--out", "e", "--fleet", str(tmp_path / "no")])
    assert nowhere.exit_code == 2 and "is no folder: name that of your fleet repo" in nowhere.stderr


def test_enrolling_again_needs_to_be_said_and_replaces_all_of_it(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "e"
    assert enrol(config, "SITE-2847-1", "--out", out).exit_code == 0
    first = (out / "token").read_text()
    again = enrol(config, "SITE-2847-1", "--out", tmp_path / "other")
    assert isinstance(again.exception, TerminalError) and "enrolled already" in str(again.exception)
    assert (out / "token").read_text() == first
    assert enrol(config, "SITE-2847-1", "--out", out, "--replace").exit_code == 0
    assert (out / "token").read_text() != first


def test_a_folder_of_another_device_is_not_overwritten_and_no_token_is_kept(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "e"
    assert enrol(config, "SITE-2847-1", "--out", out).exit_code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    result = enrol(config, "SITE-2847-2", "--out", out)
    assert result.exit_code == 1 and "is there already; name another folder" in result.stderr
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert set(hashes(config)) == {"SITE-2847-1"}


@pytest.mark.parametrize(
    ("text", "says"), [("hello", "no certificate"), (CERTIFICATE + "PRIVATE KEY", "a private key")]
)
def test_what_is_no_authority_is_refused(text: str, says: str, config: Path, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text(text)
    result = enrol(config, "SITE-2847-1", "--out", tmp_path / "e", "--ca", path)
    assert isinstance(result.exception, TerminalError) and says in str(result.exception)
