"""The units that the package holds: systemd takes them, they are as narrow as they can be, and each identity keeps to its own."""

from __future__ import annotations

import re
import subprocess
from inspect import signature
from pathlib import Path

import pytest
from click.testing import CliRunner

from reconciler.adapters.git_source import GitMirror
from reconciler.cli.main import cli
from reconciler.cli.units import units
from tests.support.system import need

PROGRAM = Path("/usr/bin/env")
"""Any that is there, whose path holds no blank, whatever the checkout's holds."""
# The most that `systemd-analyze security` may find open, of 100. A builder becomes root of a user namespace and mounts there.
EXPOSED = {"reconciler.service": 20, "reconciler-signer@.service": 20, "reconciler-builder@.service": 80}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    into = tmp_path_factory.mktemp("units")
    done = CliRunner().invoke(cli, ["systemd-units", "--output", str(into), "--program", str(PROGRAM)])
    assert done.exit_code == 0, done.output
    assert sorted(done.output.split()) == sorted(str(into / name) for name in units(PROGRAM))
    return into


def section(folder: Path, name: str, title: str) -> list[tuple[str, str]]:
    """The lines of a unit's section, in order; a key may stand there twice."""
    text = (folder / name).read_text()
    found = re.search(rf"^\[{title}\]\n(.*?)(?=^\[|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    lines = [line for line in found[1].splitlines() if line and not line.startswith("#")]
    return [(key, value) for key, _, value in (line.partition("=") for line in lines)]


@pytest.mark.system
def test_systemd_takes_them(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir() if path.suffix != ".conf")
    assert len(names) == 5
    command = [need("systemd-analyze", "systemd"), "verify", "--man=no", *(f"./{name}" for name in names)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    # It reads the machine's own units as well, and those are not ours to judge.
    assert not [line for line in done.stderr.splitlines() if "reconciler" in line]


@pytest.mark.system
def test_a_unit_that_systemd_would_not_take_is_found(tmp_path: Path) -> None:
    (tmp_path / "wrong.service").write_text("[Service]\nExecStart=/no/such/program run\nTypo=yes\n")
    command = [need("systemd-analyze", "systemd"), "verify", "--man=no", "./wrong.service"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0


@pytest.mark.system
def test_systemd_makes_the_users(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    command = [need("systemd-sysusers", "systemd"), f"--root={tmp_path}", str(folder / "reconciler.sysusers.conf")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = (tmp_path / "etc/passwd").read_text()
    assert re.findall(r"^(edge-\w+):", made, re.MULTILINE) == ["edge-controller", "edge-signer", "edge-builder"]
    assert made.count(":/usr/sbin/nologin\n") == 3


@pytest.mark.system
@pytest.mark.parametrize(("name", "most"), EXPOSED.items())
def test_little_is_left_open(folder: Path, name: str, most: int) -> None:
    command = [
        need("systemd-analyze", "systemd"),
        "security",
        "--offline=yes",
        "--no-pager",
        f"--threshold={most}",
        f"./{name}",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_each_identity_is_a_user_of_its_own_with_its_own_state(folder: Path) -> None:
    services = [dict(section(folder, name, "Service")) for name in EXPOSED]
    users = [service["User"] for service in services]
    assert len(set(users)) == len({service["StateDirectory"] for service in services}) == 3
    made = (folder / "reconciler.sysusers.conf").read_text()
    for service in services:
        assert re.search(rf'^u {service["User"]} - "[^"]+" /var/lib/{service["StateDirectory"]}$', made, re.MULTILINE)
        # Who is no file's owner and sees no other's state cannot leave its own.
        assert service["ProtectSystem"] == "strict"
        assert service["ProtectHome"] == "yes"


def test_the_controller_is_ready_when_it_serves_and_is_ended_when_it_hangs(folder: Path) -> None:
    service = dict(section(folder, "reconciler.service", "Service"))
    assert (service["Type"], service["NotifyAccess"], service["Restart"]) == ("notify", "main", "on-failure")
    clone = signature(GitMirror).parameters["clone_timeout_s"].default
    for key in ("WatchdogSec", "TimeoutStartSec"):
        assert int(service[key].removesuffix("min")) * 60 > clone, (
            "no tick that only waits for git is taken for one that hangs"
        )


def test_no_secret_is_an_argument_or_in_the_environment(folder: Path) -> None:
    for name in EXPOSED:
        lines = section(folder, name, "Service")
        assert not [
            key for key, _ in lines if key in ("Environment", "EnvironmentFile", "PassEnvironment", "SetCredential")
        ]
        loaded = [value for key, value in lines if key == "LoadCredential"]
        assert loaded == (["controller:/etc/reconciler/credentials"] if name == "reconciler.service" else [])


def test_only_the_controller_may_ask_and_what_runs_is_not_its_to_say(folder: Path) -> None:
    for who in ("signer", "builder"):
        listen = dict(section(folder, f"reconciler-{who}.socket", "Socket"))
        assert (listen["SocketGroup"], listen["SocketMode"], listen["Accept"]) == ("edge-controller", "0660", "yes")
        start = dict(section(folder, f"reconciler-{who}@.service", "Service"))["ExecStart"]
        assert start.startswith(f"{PROGRAM} relay answer -- {PROGRAM} {who} ")
        assert "%" not in start


@pytest.mark.parametrize("program", ["bin/reconciler", "/opt/a b/reconciler", "/opt/%n/reconciler"])
def test_a_path_that_a_unit_cannot_hold_is_refused(tmp_path: Path, program: str) -> None:
    done = CliRunner().invoke(cli, ["systemd-units", "--output", str(tmp_path / "units"), "--program", program])
    assert done.exit_code == 2
    assert "absolute path" in done.output
    assert not (tmp_path / "units").exists()


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(
        cli, ["systemd-units", "--output", str(tmp_path / "file" / "below"), "--program", "/bin/x"]
    )
    assert done.exit_code != 0
    assert "cannot be written" in str(done.exception)
