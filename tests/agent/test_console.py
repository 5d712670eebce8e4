"""Commands for a person on the console: beside a running agent, and without one. Real processes, sockets, keys and images."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import reconciler
from reconciler.agent import control
from reconciler.agent.main import main
from reconciler.protocol.report import Slot
from tests.agent import world
from tests.agent.conftest import Releases
from tests.agent.world import DEVICE, SITE, TOKEN, Artifact, Office, Site

pytestmark = pytest.mark.system

ROOT = Path(reconciler.__file__).parents[1]
TIMING = {"settle_s": 1, "recheck_s": 0.1, "spread_s": 0, "least_window_s": 0, "report_jitter": 0}


@pytest.fixture(autouse=True)
def _today(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands read the real clock, so assignments and signatures are of today."""
    office.now = datetime.now(UTC).replace(microsecond=0)
    monkeypatch.setattr(world, "SIGNED", office.now - timedelta(days=1))


@pytest.fixture
def v2(office: Office, releases: Releases, keys: world.Keys) -> Artifact:
    return world.pack(releases.v2.image, office.root / "artifacts" / "edge-golden-v2-20260101", "v2", keys)


@pytest.fixture
def bad(office: Office, releases: Releases, keys: world.Keys) -> Artifact:
    return world.pack(releases.bad.image, office.root / "artifacts" / "edge-golden-v3-20260101", "v3", keys)


@pytest.fixture
def command(site: Site, office: Office, tmp_path: Path) -> Callable[..., int]:
    """Runs `edge-agent WORD …` in this process with the device's settings; its exit status."""
    (tmp_path / "token").write_text(TOKEN)
    settings = {"device": DEVICE, "site": SITE, "server": office.url, "tokenFile": str(tmp_path / "token")}
    file = tmp_path / "agent.json"
    file.write_text(json.dumps({**settings, "root": str(site.root), "timing": TIMING, "slotBytes": 1024 * 1024}))
    return lambda *words: main([*words, "--config", str(file)])


@contextmanager
def _running(tmp_path: Path, office: Office, says: bytes = b"") -> Iterator[subprocess.Popen[bytes]]:
    """The agent as a process. `says` is in its only line on standard error; nothing else is said there."""
    arguments = ["run", "--config", str(tmp_path / "agent.json")]
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "reconciler.agent.main", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        _until(lambda: bool(office.reports) or process.poll() is not None)
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err.count(b"\n")) == (0, b"", 1 if says else 0), err
        assert says in err


def _until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while not holds() and time.monotonic() < ends:
        time.sleep(0.02)


def _open(office: Office) -> tuple[tuple[datetime, datetime], ...]:
    return ((office.now - timedelta(hours=1), office.now + timedelta(hours=1)),)


# ---------------------------------------------------------------- apply


def test_apply_without_an_agent_does_what_is_due_and_says_so(
    site: Site, office: Office, v2: Artifact, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    office.assign(v2, window=_open(office))
    assert command("apply") == 0
    said = capsys.readouterr().err
    assert "nothing is left to do" in said
    assert (site.hardware.version().current, site.hardware.booted()) == ("v2", "a")
    assert command("apply") == 0
    assert site.hardware.version().current == "v2"


def test_apply_beside_a_running_agent_lets_that_one_do_it(
    site: Site,
    office: Office,
    v2: Artifact,
    command: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    office.report_every_s = 3600
    with _running(tmp_path, office):
        _until(lambda: control.ask(site.root / "agent", {"ask": "status"})["state"] == "idle")
        office.assign(v2, window=_open(office))
        assert command("apply") == 0
        assert site.hardware.version().current == "v2"
        assert command("status", "--json") == 0
        shown = json.loads(capsys.readouterr().out)
        assert (shown["agent"]["state"], shown["agent"]["reached"], shown["current"]) == ("idle", True, "v2")
        assert shown["agent"]["pid"] != os.getpid()


def test_apply_never_goes_past_the_window(
    site: Site, office: Office, v2: Artifact, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    opens = office.now + timedelta(hours=2)
    office.assign(v2, window=((opens, opens + timedelta(hours=1)),))
    assert command("apply") == 0
    assert f"not before {opens:%Y-%m-%dT%H:%M:%SZ}" in capsys.readouterr().err
    assert site.hardware.version().current == "v1"
    assert site.hardware.slots()["a"] == Slot()
    assert list((site.root / "agent" / "cache").rglob("manifest.json")), "it was fetched"


def test_apply_never_goes_past_a_check(
    site: Site, office: Office, bad: Artifact, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    office.assign(bad, window=_open(office))
    assert command("apply") == 1
    assert "attempt-failed: v3 failed" in capsys.readouterr().err
    assert (site.hardware.booted(), office.last().attempts) == ("b", {"v3": 1})


def test_apply_without_a_server(
    site: Site, office: Office, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("apply", "--server", "http://127.0.0.1:9") == 3
    assert "127.0.0.1:9 cannot be reached" in capsys.readouterr().err


# ---------------------------------------------------------------- rollback


@pytest.fixture
def updated(site: Site, office: Office, v2: Artifact, command: Callable[..., int]) -> Site:
    """A device that runs v2 and has v1 in the other slot, good."""
    office.assign(v2, window=_open(office))
    assert command("apply") == 0
    return site


def test_rollback_takes_a_yes(updated: Site, command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    before = updated.tree()
    assert command("rollback") == 2
    assert "slot b with v1" in capsys.readouterr().err
    assert updated.tree() == before


def test_rollback_where_nothing_was_good(
    site: Site, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (("rollback",), ("rollback", "--yes")):
        before = site.tree()
        assert command(*words) == 1
        assert "nothing that was good" in capsys.readouterr().err
        assert site.tree() == before


def _is_held(office: Office, command: Callable[..., int], site: Site) -> None:
    """It stays back and says so, through reports and boots, until a newer assignment comes."""
    # What is assigned is refused, by a person's word: the exit status says so.
    assert command("once") == 1
    site.device.power_cycle()
    assert command("once") == 1
    report = office.last()
    assert (report.image, report.previous, report.attempts) == ("v1", "v2", {})
    assert [(item.code, item.serial) for item in report.refusals] == [("rolled-back", (1, 1))]
    assert report.slots == {"a": Slot("v2", report.slots["a"].digest, True), "b": report.slots["b"]}


def test_rollback_without_an_agent_goes_back_and_stays_there_until_a_newer_assignment(
    updated: Site, office: Office, v2: Artifact, command: Callable[..., int]
) -> None:
    assert command("rollback", "--yes") == 0
    assert (updated.hardware.booted(), updated.hardware.flags().default) == ("b", "b")
    assert updated.hardware.version().current == "v1"
    _is_held(office, command, updated)
    office.assign(v2, window=_open(office))
    assert command("apply") == 0
    assert (office.last().image, office.last().refusals) == ("v2", ())


def test_rollback_beside_a_running_agent(
    updated: Site, office: Office, command: Callable[..., int], tmp_path: Path
) -> None:
    office.reports.clear()
    with _running(tmp_path, office):
        assert command("rollback", "--yes") == 0
        assert updated.hardware.version().current == "v1"
        assert "trial" in [report.phase for report in office.reports]
    _is_held(office, command, updated)


def test_rollback_needs_no_server(updated: Site, command: Callable[..., int]) -> None:
    assert command("rollback", "--yes", "--server", "http://127.0.0.1:9") == 0
    assert updated.hardware.version().current == "v1"


def test_a_rollback_to_what_is_worse_ends_where_it_began(
    updated: Site, office: Office, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """The trial is judged like any other; nothing is charged to a release, and nothing is held."""
    image = updated.root / "slot-b.img"
    image.write_bytes(image.read_bytes().replace(b'"status": "ok", "message": ""', b'"status":"critical","message":""'))
    value = json.loads((updated.root / "slots.json").read_text())
    value["b"]["digest"] = updated.slot_digest("b", value["b"]["size"])
    (updated.root / "slots.json").write_text(json.dumps(value))
    assert command("rollback", "--yes") == 1
    assert "it runs slot a again" in capsys.readouterr().err
    assert (updated.hardware.booted(), updated.hardware.flags().default) == ("a", "a")
    assert command("once") == 0
    assert (office.last().image, office.last().attempts) == ("v2", {})


def test_a_slot_that_has_rotted_is_not_gone_back_to(
    updated: Site, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray((updated.root / "slot-b.img").read_bytes())
    data[70000] ^= 1
    (updated.root / "slot-b.img").write_bytes(bytes(data))
    assert command("rollback", "--yes") == 1
    assert "slot-spoiled" in capsys.readouterr().err
    assert updated.hardware.booted() == "a"


# ---------------------------------------------------------------- status


def test_status_is_for_reading(updated: Site, command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    before = updated.tree()
    assert command("status") == 0
    text = capsys.readouterr().out
    for words in ("v2 (good)", "slot a", "v1 (good)", "1.1, expires", "synchronised", "not running", "previous v1"):
        assert words in text, text
    assert updated.tree() == before


def test_a_question_that_nobody_understands_and_callers_that_say_nothing(
    site: Site, office: Office, command: Callable[..., int], tmp_path: Path
) -> None:
    folder = site.root / "agent"
    with pytest.raises(control.NotRunning):
        control.ask(folder, {"ask": "status"})
    with _running(tmp_path, office):
        assert "does not know 'dance'" in control.ask(folder, {"ask": "dance"})["error"]
        assert (folder / control.NAME).stat().st_mode & 0o777 == 0o600
        silent = socket.socket(socket.AF_UNIX)
        descriptor = os.open(folder, os.O_RDONLY)
        silent.connect(f"/proc/self/fd/{descriptor}/{control.NAME}")
        _until(lambda: control.ask(folder, {"ask": "status"})["state"] == "idle")
        assert control.ask(folder, {"ask": "status"})["state"] == "idle"
        silent.close()
        os.close(descriptor)
    assert not (folder / control.NAME).exists()


def test_status_tells_an_agent_that_cannot_be_asked_from_none(
    site: Site, office: Office, command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("status") == 0
    assert "not running" in capsys.readouterr().out
    (site.root / "agent" / control.NAME).mkdir()
    with _running(tmp_path, office, says=b"control.sock cannot be made: Is a directory"):
        assert command("status") == 0
        text = capsys.readouterr().out
        assert "not running" not in text
        assert "runs, since it holds its lock, but cannot be asked" in text
        assert f"{site.root / 'agent' / control.NAME} is not a socket" in text and "journalctl" in text
        # Nor is it told to stop an agent that nobody sees.
        assert command("apply") == 3
        assert "the agent runs, since it holds its lock, but cannot be asked" in capsys.readouterr().err
    assert command("status") == 0
    assert "not running" in capsys.readouterr().out


def test_status_shows_what_can_be_read_and_names_the_rest(
    updated: Site, office: Office, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    (updated.root / "agent" / "state.json").write_bytes(b"torn")
    (updated.root / "slots.json").unlink()
    (updated.root / "slots.json").mkdir()
    assert command("status", "--json") == 1
    out, err = capsys.readouterr()
    shown = json.loads(out)
    assert (shown["booted"], shown["current"], shown["previous"], shown["serial"]) == ("a", "v2", "v1", None)
    assert ["state.json" in fault for fault in shown["faults"]] == [True, False]
    assert "slots.json cannot be read: Is a directory" in shown["faults"][1] and shown["faults"][1] in err
    assert command("status") == 1
    assert "fault          " in capsys.readouterr().out


def test_a_person_is_told_why_nothing_is_begun(
    updated: Site, office: Office, command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With and without a running agent, and no command waits for what does not come."""
    state = updated.root / "agent" / "state.json"
    state.write_bytes(b"torn")
    for words in (("apply",), ("rollback", "--yes"), ("once",)):
        assert command(*words) == 1, words
        assert "state.json is damaged" in capsys.readouterr().err
    office.reports.clear()
    with _running(tmp_path, office, says=b"device-fault: "):
        for words in (("apply",), ("rollback", "--yes")):
            assert command(*words) == 1, words
            assert "state.json is damaged" in capsys.readouterr().err
    assert updated.hardware.booted() == "a" and state.read_bytes() == b"torn"


# ---------------------------------------------------------------- once


def test_the_exit_status_of_once_says_that_something_was_refused(
    site: Site, office: Office, v2: Artifact, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    office.assign(v2, window=_open(office), device="SITE-9-1")
    assert command("once") == 1
    assert "wrong-device: the assignment is for SITE-9-1" in capsys.readouterr().err
    # What was only not reached may be, later.
    office.assign(v2, window=_open(office))
    office.sources_of_image = ["http://127.0.0.1:9/"]
    assert command("once") == 3
    assert "not-fetched: " in capsys.readouterr().err
    office.sources_of_image = None
    assert command("once") == 0
    assert site.hardware.version().current == "v2"


# ---------------------------------------------------------------- verify


@pytest.mark.parametrize("name", ["manifest.json", "SHA256SUMS", "SHA256SUMS.gpg", "notes.txt"])
def test_verify_of_another_file_of_an_artifact_says_what_to_give(
    name: str, v2: Artifact, office: Office, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    (v2.folder / "notes.txt").write_text("of the builder")
    world.seal_folder(v2.folder, office.keys)
    assert command("verify", str(v2.folder / name)) == 1
    said = capsys.readouterr().err
    assert f"{v2.folder / name} is a file of an artifact, and not its packed image" in said
    assert f"give the folder {v2.folder}, or {v2.folder / v2.folder.name}.img.zst" in said


def test_verify_of_what_is_no_artifact_says_what_to_give(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "some.txt").write_text("x")
    for path in (tmp_path / "some.txt", tmp_path):
        assert command("verify", str(path)) == 1
        said = capsys.readouterr().err
        assert f"there is no manifest.json in {tmp_path}; give an artifact's folder" in said


def test_verify_proves_a_folder_and_a_file_and_writes_nothing(
    site: Site, v2: Artifact, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("verify", str(v2.folder)) == 0
    assert "v2 is genuine" in capsys.readouterr().out
    # The first look has unpacked the folder's image, as a kernel mounts a slot.
    before = site.tree()
    assert command("verify", str(v2.folder / f"{v2.folder.name}.img.zst"), "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["release"], shown["digest"], shown["accepted"]) == ("v2", v2.digest, True)
    assert site.tree() == before


def test_verify_takes_keys_of_another_folder_and_then_needs_no_device(
    v2: Artifact, keys: world.Keys, tmp_path: Path
) -> None:
    folder = tmp_path / "keys"
    folder.mkdir()
    (folder / "release.gpg").write_bytes(keys.ring(keys.release))
    (folder / "release.fpr").write_text(keys.release + "\n")
    assert main(["verify", str(v2.folder), "--keys", str(folder)]) == 0
    (folder / "release.gpg").write_bytes(keys.ring(keys.foreign))
    (folder / "release.fpr").write_text(keys.foreign + "\n")
    assert main(["verify", str(v2.folder), "--keys", str(folder)]) == 1


@pytest.mark.parametrize(
    ("name", "spoil", "code"),
    [
        ("SHA256SUMS", lambda data: data.replace(b"0", b"1", 1), "signature-bad"),
        ("SHA256SUMS.gpg", lambda data: data + data, "signature-several"),
        ("manifest.json", lambda data: data + b"\n", "manifest-digest"),
        ("manifest.json", lambda data: b"[]", "artifact-malformed"),
        ("edge-golden-v2-20260101.img.zst", lambda data: data[:-1] + b"x", "artifact-digest"),
        ("notes.txt", lambda data: data + b"x", "artifact-digest"),
    ],
)
def test_verify_refuses_by_code_and_reason(
    v2: Artifact,
    office: Office,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    name: str,
    spoil: Callable[[bytes], bytes],
    code: str,
) -> None:
    (v2.folder / "notes.txt").write_text("of the builder")
    world.seal_folder(v2.folder, office.keys)
    assert command("verify", str(v2.folder)) == 0
    assert "fits     notes.txt" in capsys.readouterr().out
    (v2.folder / name).write_bytes(spoil((v2.folder / name).read_bytes()))
    assert command("verify", str(v2.folder), "--json") == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["code"] == code
    assert code in shown.err


def test_verify_of_what_is_not_there(
    v2: Artifact, command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("verify", str(tmp_path / "none")) == 1
    assert "does not exist" in capsys.readouterr().err
    shutil.copytree(v2.folder, tmp_path / "copy")
    (tmp_path / "copy" / "SHA256SUMS.gpg").unlink()
    assert command("verify", str(tmp_path / "copy")) == 1
    assert "there is no SHA256SUMS.gpg" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        command("verify")
    assert caught.value.code == 2
