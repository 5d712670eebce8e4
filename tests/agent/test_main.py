"""The command: settings, exit statuses, one agent a device, a clean end; and the package on Python 3.10."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import reconciler
from reconciler.agent.main import main
from reconciler.agent.settings import SettingsError, read_settings
from tests.agent.conftest import Releases
from tests.agent.world import DEVICE, SITE, START, TOKEN, Office, Site

ROOT = Path(reconciler.__file__).parent
PACKAGES = (ROOT / "agent", ROOT / "protocol")
FILES = [path for package in PACKAGES for path in sorted(package.glob("*.py"))]


# ---------------------------------------------------------------- Python 3.10, standard library only (vermin and mypy: tests/house)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_a_module_imports_the_standard_library_and_the_protocol_alone(path: Path) -> None:
    ours = ("reconciler.protocol", "reconciler.agent") if path.parent.name == "agent" else ("reconciler.protocol",)
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [item.name for item in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [node.module or ""]
        for name in names:
            standard = name.split(".")[0] in sys.stdlib_module_names
            assert standard or any(name == package or name.startswith(package + ".") for package in ours), name


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_a_module_says_where_it_runs_and_stays_small(path: Path) -> None:
    text = path.read_text()
    assert "Python 3.10, standard library" in (ast.get_docstring(ast.parse(text)) or "")
    assert len(text.splitlines()) < 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 70, node.name


@pytest.mark.slow
def test_it_runs_on_a_real_python_3_10() -> None:
    """Where one is installed. A shim of a version manager that does not answer does not count as one."""
    found = [shutil.which("python3.10"), *map(str, Path.home().glob(".pyenv/versions/3.10.*/bin/python"))]
    for python in filter(None, found):
        command = [python, "-c", "import sys; print(sys.version_info[:2])"]
        if subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() == "(3, 10)":
            break
    else:
        pytest.skip("needs python3.10")
    modules = ", ".join(f"reconciler.{path.parent.name}.{path.stem}" for path in FILES if path.stem != "__init__")
    command = [python, "-W", "error", "-c", f"import {modules}"]
    done = subprocess.run(command, cwd=ROOT.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- settings


def _settings(tmp_path: Path, **values: object) -> Path:
    (tmp_path / "token").write_text(TOKEN + "\n")
    file = tmp_path / "agent.json"
    base = {"device": DEVICE, "site": SITE, "server": "https://h/", "tokenFile": str(tmp_path / "token"), "root": "/x"}
    file.write_text(json.dumps({**base, **values}))
    return file


def test_settings_come_from_the_file_and_the_command_line(tmp_path: Path) -> None:
    settings = read_settings(_settings(tmp_path, timing={"settle_s": 5}), {"root": str(tmp_path), "server": None})
    assert (settings.root, settings.server.token, settings.timing.settle_s) == (tmp_path, TOKEN, 5)
    assert TOKEN not in repr(settings)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"device": "a b"}, "--device"),
        ({"site": None}, "--site"),
        ({"server": ""}, "--server"),
        ({"server": "http://far.example/"}, "https"),
        ({"tokenFile": "/nowhere"}, "/nowhere"),
        ({"root": 5}, "--root"),
        ({"slotBytes": 0}, "slotBytes"),
        ({"caFile": 5}, "caFile"),
        ({"allowFileUrls": "yes"}, "allowFileUrls"),
        ({"timing": {"settle": 5}}, "'settle'"),
        ({"timing": {"settle_s": -1}}, "settle_s"),
        ({"timing": {"settle_s": 1e300}}, "settle_s"),
        ({"timing": []}, "timing"),
        ({"colour": "red"}, "'colour'"),
    ],
)
def test_settings_that_are_wrong_name_the_key(tmp_path: Path, values: dict[str, object], says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings(_settings(tmp_path, **values), {})
    assert says in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_a_settings_file_that_is_missing_or_none(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        read_settings(tmp_path / "none.json", {})
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(SettingsError, match="not JSON"):
        read_settings(tmp_path / "bad.json", {})
    with pytest.raises(SettingsError, match="cannot be read"):
        read_settings(tmp_path, {})


# ---------------------------------------------------------------- the command


def _arguments(site: Site, office: Office, tmp_path: Path) -> list[str]:
    (tmp_path / "token").write_text(TOKEN)
    place = ["--root", str(site.root), "--server", office.url, "--token-file", str(tmp_path / "token")]
    return [*place, "--device", DEVICE, "--site", SITE]


@pytest.mark.system
def test_once_brings_the_device_to_what_it_is_assigned(
    site: Site, office: Office, releases: Releases, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The command reads the real clock, so the assignment is of today.
    from datetime import UTC, datetime, timedelta

    from tests.agent import world

    office.now = datetime.now(UTC).replace(microsecond=0)
    signed, world.SIGNED = world.SIGNED, office.now - timedelta(days=1)
    try:
        today = world.pack(releases.v2.image, office.root / "artifacts" / "edge-golden-v2-20260101", "v2", office.keys)
        office.assign(today, window=((office.now - timedelta(hours=1), office.now + timedelta(hours=1)),))
    finally:
        world.SIGNED = signed
    arguments = _arguments(site, office, tmp_path)
    assert main(["once", "--json", *arguments]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["current"], shown["previous"], shown["booted"], shown["intent"]) == ("v2", "v1", "a", None)
    assert main(["status", "--json", "--root", str(site.root)]) == 0
    assert json.loads(capsys.readouterr().out) == shown


@pytest.mark.system
def test_once_without_a_server_says_so(
    site: Site, office: Office, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = _arguments(site, office, tmp_path)
    arguments[3] = "http://127.0.0.1:9"
    assert main(["once", *arguments]) == 3
    assert "127.0.0.1:9 cannot be reached" in capsys.readouterr().err


def test_status_of_no_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--root", str(tmp_path)]) == 1
    assert "no device's folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["dance"])
    assert caught.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


@pytest.mark.system
def test_a_damaged_state_file_stops_it_and_is_left_alone(
    site: Site, office: Office, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = site.root / "agent" / "state.json"
    for damage in (b"{", b"{}", b'{"version":1,"assignment":"!!","sequenceReserved":1}'):
        state.write_bytes(damage)
        assert main(["once", *_arguments(site, office, tmp_path)]) == 1
        assert "is damaged" in capsys.readouterr().err
        assert state.read_bytes() == damage


@pytest.mark.system
def test_a_second_agent_is_kept_away_and_sigterm_ends_the_first(site: Site, office: Office, tmp_path: Path) -> None:
    arguments = _arguments(site, office, tmp_path)
    command = [sys.executable, "-W", "error", "-m", "reconciler.agent.main", "run", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT.parent, env=dict(os.environ)
    )
    try:
        deadline = time.monotonic() + 60
        while not office.reports and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert office.reports, process.stderr.read() if process.poll() is not None and process.stderr else "no report"
        second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT.parent)
        assert second.returncode == 1
        assert "another agent works on" in second.stderr
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, b"", b"")
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.mark.system
def test_a_quiet_step_writes_nothing_and_costs_one_request(site: Site, office: Office) -> None:
    site.settle()
    before = site.tree()
    office.requests.clear()
    for _ in range(5):
        office.now = site.step()
    assert len(office.requests) <= 5
    assert site.tree() == before
    assert office.now > START
