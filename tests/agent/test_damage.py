"""A disk that is full, read-only or damaged, an app's runtime that is broken, a network that leads nowhere: the agent says so,
goes on with the rest, and comes back by itself when it is over."""

from __future__ import annotations

import errno
import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from datetime import timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from reconciler.agent import artifact, transport
from reconciler.agent.agent import Identity
from reconciler.agent.device import Device
from reconciler.agent.directory import DirectoryHardware
from reconciler.agent.disk import Disk
from reconciler.agent.hardware import HardwareError, ImageVersion
from reconciler.agent.machine import State
from reconciler.agent.main import Busy, _lock, main
from reconciler.agent.seed import Seed
from reconciler.agent.state import StateError, StateFile
from reconciler.agent.transport import HttpTransport, Server, TransportError
from reconciler.protocol.exchange import SiteConfig
from tests.agent.bench import BenchHardware
from tests.agent.conftest import Releases
from tests.agent.world import QUICK, START, TOKEN, Office, Site, send

ONE, TWO, THREE = (
    SiteConfig("sha256:" + digit * 64, {"user-data": f"#cloud-config\n# {digit}\n".encode(), "meta-data": b"x\n"})
    for digit in "123"
)


def at(minutes: float) -> Any:
    return START + timedelta(minutes=minutes)


def codes(office: Office) -> list[str]:
    return [refusal.code for refusal in office.last().refusals]


# ------------------------------------------------------------ a disk that takes nothing


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
def test_on_a_disk_that_takes_nothing_reports_go_on_and_say_so(
    number: int, site: Site, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.settle(at(3))
    before, replace = office.last(), Disk.replace

    def no(_self: Disk, path: Path, _data: bytes, _mode: int = 0o644) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Disk, "replace", no)
    heard, last = len(office.reports), before.sequence
    for life in range(2):
        site.device.end()  # The process is started anew, in the same boot.
        site.settle(at(6 + 3 * life))
        said = [report.sequence for report in office.reports[heard:]]
        assert len(said) >= 3 and said == sorted(set(said)) and said[0] > before.sequence
        assert life == 0 or said[0] >= last - 3, "the server takes a lower number for a late report"
        assert codes(office) == ["device-fault"] and os.strerror(number) in office.last().refusals[0].reason
        heard, last = len(office.reports), said[-1]
    monkeypatch.setattr(Disk, "replace", replace)
    site.settle(at(12))
    assert codes(office) == [] and office.last().sequence > last


def test_a_fault_that_is_over_is_told_no_more(site: Site, office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    site.settle(at(1))
    site.step()
    flags, kind = site.hardware.booted, type(site.hardware)
    assert flags() == "b"
    office.assign()

    def no(_self: Any) -> None:
        raise HardwareError("the disk says no")

    with monkeypatch.context() as patch:
        patch.setattr(kind, "config_digest", no)
        office.assign(config=ONE.digest)
        for _ in range(3):
            office.now = max(office.now, site.step())
    assert [refusal.code for refusal in site.device.agent.notes.refusals()] == ["device-fault"]
    office.assign()
    site.settle(at(10))
    assert codes(office) == []


def test_what_does_not_fit_on_the_disk_is_not_begun(
    site: Site, office: Office, releases: Releases, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(artifact, "SPARE_BYTES", 1 << 60)
        office.assign(releases.v2)
        site.settle(at(5))
        assert codes(office) == ["no-room"]
        assert not list((site.root / "agent" / "cache").rglob("part"))
    site.settle(at(20))
    assert office.last().image == "v2"


# ------------------------------------------------------------ files that are damaged


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        (b"current=\x01\x02\nprevious=\n", None),
        (b"current=" + b"v" * 129, None),
        (b"current=v1\nprevious=\x1b[2J\n", ImageVersion("v1")),
        (b"current=v1\nprevious=" + b"v" * 129, ImageVersion("v1")),
        (b"\xff\xfe\0\0", None),
    ],
)
def test_a_version_that_no_report_could_carry_is_none(
    text: bytes, is_found: ImageVersion | None, tmp_path: Path
) -> None:
    bench, folder = BenchHardware(tmp_path / "bench"), DirectoryHardware(tmp_path / "folder")
    (bench.root / "agent" / "image-version").write_bytes(text)
    (folder.root / "etc" / "edge-image-version").write_bytes(text)
    assert bench.version() == (is_found or ImageVersion())
    assert folder.version().previous is None


@pytest.mark.parametrize(
    "text",
    [
        b'{"attempts": [["v1", 1e999]], "sequenceReserved": 5, "version": 1}',
        b'{"failedUnder": [["v1", {}]], "sequenceReserved": 5, "version": 1}',
        b"[" * 100_000,
        b"{}" + b" " * (1 << 20),
    ],
)
def test_a_memory_that_makes_no_sense_is_named(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_bytes(text)
    with pytest.raises(StateError, match=r"state.json is damaged"):
        StateFile(tmp_path / "state.json", Disk()).load()


@pytest.mark.parametrize("damage", [b"torn", b"[]", None])
def test_records_of_a_folder_that_cannot_be_read_silence_nobody(
    damage: bytes | None, site: Site, office: Office, releases: Releases
) -> None:
    site.settle(at(1))
    path = site.root / "slots.json"
    data, heard = path.read_bytes(), len(office.reports)
    path.unlink()
    path.mkdir() if damage is None else path.write_bytes(damage)
    office.assign(releases.v2)
    site.settle(at(4))
    site.device.power_cycle()
    site.settle(at(8))
    assert len(office.reports) >= heard + 6 and codes(office) == ["device-fault"]
    assert "slots.json cannot be read" in office.last().refusals[0].reason
    assert (office.last().image, office.last().health) == ("v1", "critical"), "its image's healthcheck is not found"
    path.rmdir() if damage is None else path.unlink()
    path.write_bytes(data)
    site.settle(at(20))
    assert office.last().image == "v2" and codes(office) == []


def test_a_version_of_the_seed_that_is_damaged_is_stored_again(site: Site, office: Office) -> None:
    office.config = ONE
    office.assign(config=ONE.digest)
    site.settle(at(2))
    (site.root / "cidata" / "digest").resolve().write_bytes(b"")
    asked = len(office.requests)
    site.settle(at(5), limit=100)
    assert office.last().config == ONE.digest and codes(office) == []
    assert (site.root / "cidata" / "user-data").read_bytes() == ONE.files["user-data"]
    assert [path for _, path, _ in office.requests[asked:]].count("/v1/config") == 1
    kept = [path for path in (site.root / "cidata").glob(".v-*") if (path / "digest").read_bytes() == b""]
    assert len(kept) <= 1, "what is damaged is at most the one before"


@pytest.mark.parametrize("kind_of", ["short", "link"])
def test_an_artifact_that_is_damaged_is_fetched_once_more(
    kind_of: str, site: Site, office: Office, releases: Releases
) -> None:
    """What is fetched meanwhile is the same image, packed anew: its file has another name."""
    office.assign(releases.v2, window=())
    site.settle(at(3))
    (folder,) = (site.root / "agent" / "cache").iterdir()
    (packed,) = (path for path in folder.iterdir() if len(path.name) == 64)
    packed.unlink()
    (folder / ("0" * 64)).symlink_to("nowhere") if kind_of == "link" else (folder / ("0" * 64)).write_bytes(b"x")
    asked = len(office.requests)
    site.settle(at(6), limit=100)
    assert {path.name for path in folder.iterdir()} == {packed.name, "manifest.json"}
    fetched = [path for _, path, _ in office.requests[asked:] if path.endswith(".img.zst")]
    assert len(fetched) == 1


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), lambda path: path.unlink()])
@pytest.mark.parametrize("name", ["user-data", "meta-data"])
def test_a_seed_that_lost_a_file_is_sent_again(
    name: str, damage: Callable[[Path], None], site: Site, office: Office
) -> None:
    office.config = ONE
    office.assign(config=ONE.digest)
    site.settle(at(2))
    damage((site.root / "cidata" / name).resolve())
    assert site.hardware.config_digest() is None
    site.settle(at(5), limit=100)
    assert office.last().config == ONE.digest and codes(office) == []
    assert (site.root / "cidata" / name).read_bytes() == ONE.files[name]


def test_a_report_is_sent_however_much_checks_have_to_say(site: Site, office: Office) -> None:
    for number in range(60):
        (site.root / "faults" / f"check-{number}").write_text("warning " + "\u00e4" * 280)
    site.settle(at(3))
    assert len(office.reports) >= 3
    checks = office.last().checks
    assert len(checks) > 60 and {check.status for check in checks} == {"warning", "ok"}
    assert all(len(check.message) <= 100 for check in checks)


def test_a_configuration_that_cannot_be_stored_is_tried_again_later_and_later(
    site: Site, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    office.config = ONE
    office.assign(config=ONE.digest)
    (site.root / "cidata").write_text("a file in the place of the folder")
    site.settle(at(30), limit=400)
    assert codes(office) == ["device-fault"] and "cannot be stored" in office.last().refusals[0].reason
    assert 2 <= [path for _, path, _ in office.requests].count("/v1/config") <= 8
    (site.root / "cidata").unlink()
    site.settle(at(60))
    assert office.last().config == ONE.digest and codes(office) == []


class Failing:
    """An activation that puts nothing in force, and loses what was stored before."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.begun = folder, 0

    def begin(self) -> None:
        self.begun += 1
        (self.folder / ".previous").unlink(missing_ok=True)

    def ended(self) -> int | None:
        return 13 if self.begun == 1 else 0

    def meaning(self, status: int) -> str:
        return "it failed"


def test_without_a_configuration_to_go_back_to_one_that_failed_counts_as_failed(site: Site, office: Office) -> None:
    office.config = ONE
    office.assign(config=ONE.digest)
    site.settle(at(2))
    site.hardware.seed = Seed(site.hardware.seed.folder, Disk(), Failing(site.hardware.seed.folder))
    office.config = TWO
    office.assign(config=TWO.digest)
    site.settle(at(10))
    assert codes(office) == ["device-fault"] and "not on the device any more" in office.last().refusals[0].reason
    assert site.device.agent.work.state is State.IDLE
    assert site.device.agent.notes.memory.failed_under, "it is not taken for one that is in force"
    office.config = THREE
    office.assign(config=THREE.digest)
    site.settle(at(20))
    assert office.last().config == THREE.digest and codes(office) == []


# ------------------------------------------------------------ a runtime that is broken


def test_an_app_that_cannot_be_put_back_does_not_keep_the_device_from_its_image(
    site: Site, office: Office, releases: Releases, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = office.push_app(b"old", version="1"), office.push_app(b"new", version="2")
    office.assign(apps={"video-ingest": old})
    site.settle(at(3))

    def no(*_: Any) -> None:
        raise HardwareError("docker does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(type(site.hardware), "run_app", no)
        office.assign(apps={"video-ingest": new})
        site.settle(at(10))
        assert office.last().attempts == {"video-ingest@2": 1}
        assert site.device.agent.work.state is State.IDLE
        office.assign(releases.v2, apps={"video-ingest": old})
        site.settle(at(20))
        assert office.last().image == "v2"
    assert office.last().apps == {"video-ingest": old.digest}


# ------------------------------------------------------------ a network that leads nowhere


@pytest.fixture
def link(office: Office) -> Iterator[HttpTransport]:
    made = HttpTransport(Server(office.url, TOKEN, timeout_s=60))
    yield made
    made.close()


@pytest.fixture
def nobody() -> Iterator[Any]:
    """An address at which nobody listens, and nobody else can."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield unused.getsockname()


def _addresses(dead: int, nobody: Any, office: Office) -> Callable[..., list[Any]]:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", nobody)] * dead
    return lambda *_, **__: [*found, (socket.AF_INET, socket.SOCK_STREAM, 6, "", office.server.server_address)]


def test_of_a_name_with_many_addresses_some_are_tried(
    link: HttpTransport, office: Office, nobody: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", _addresses(transport.MAX_ADDRESSES - 1, nobody, office))
    with pytest.raises(TransportError, match="404"):
        link.read(office.url + "/nothing", 100)
    link.close()
    monkeypatch.setattr(socket, "getaddrinfo", _addresses(500, nobody, office))
    with pytest.raises(TransportError, match="cannot be reached"):
        link.read(office.url + "/nothing", 100)


def test_redirects_take_no_longer_than_a_file(
    link: HttpTransport, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(request: BaseHTTPRequestHandler) -> bool:
        time.sleep(0.15)
        send(request, 302, b"", {"Location": "/again"})
        return True

    office.before = slow
    monkeypatch.setattr(transport, "WHOLE_S", 0.1)
    with pytest.raises(TransportError, match="took longer"):
        link.read(office.url + "/slow", 100)
    assert len(office.requests) == 1


def test_what_cannot_be_sent_is_not_quoted(link: HttpTransport, office: Office) -> None:
    def away(request: BaseHTTPRequestHandler) -> bool:
        request.send_response(302)
        request.send_header("Location", "/a b?X-Amz-Signature=sentinel")
        request.send_header("Content-Length", "0")
        request.end_headers()
        return True

    office.before = away
    for headers in ({}, {"X-Token": "sentinel\nX: y"}):
        with pytest.raises(TransportError, match="may not be sent") as caught:
            link.read(office.url + "/file?X-Amz-Signature=sentinel", 100, headers)
        assert "sentinel" not in str(caught.value)


@pytest.mark.parametrize("url", ["https://host:99999/", "https://host:x/", "https://[::1/"])
def test_a_server_without_a_valid_port_or_host_is_a_setting_that_is_wrong(url: str) -> None:
    with pytest.raises(ValueError, match=r"port|IPv6"):
        Server(url, TOKEN)


@pytest.mark.parametrize(
    ("text", "says"), [(b"no certificate", "holds no certificate"), (None, "cannot be read: No such")]
)
def test_authorities_that_cannot_be_read_are_named(
    text: bytes | None, says: str, office: Office, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "ca.pem").write_bytes(text)
    made = HttpTransport(Server(office.url.replace("http:", "https:"), TOKEN, tmp_path / "ca.pem", timeout_s=60))
    with pytest.raises(TransportError, match=rf"ca\.pem \(caFile in the settings\) {says}"):
        made.config()


# ------------------------------------------------------------ another device's disk, and a person's hands


def test_an_assignment_of_another_device_that_lies_on_the_disk_is_none(
    site: Site, office: Office, releases: Releases
) -> None:
    office.assign(releases.v2, window=())
    site.settle(at(3))
    serial = office.last().serial
    other = Device(Identity("SITE-9-1", "SITE-9"), site.hardware, site.transport, timing=QUICK)  # type: ignore[arg-type]
    agent = other.agent
    assert agent.notes.assignment is None and agent.notes.serial == serial
    assert [refusal.code for refusal in agent.notes.refusals()] == ["wrong-device"]
    other.end()


def test_a_reader_that_leaves_is_no_fault(tmp_path: Path) -> None:
    DirectoryHardware(tmp_path / "device")
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "reconciler.agent.main", "status", "--root", str(tmp_path / "device")]
    with os.fdopen(write, "wb") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, check=False, timeout=240)
    assert (done.returncode, done.stderr) == (1, b"")


def test_what_may_not_be_looked_at_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Played: the suite may run as root, whom nobody keeps out."""

    def no(self: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_dir", no)
    with redirect_stderr(io.StringIO()) as said:
        assert main(["status", "--root", str(tmp_path)]) == 1
    assert said.getvalue() == f"edge-agent: {tmp_path}/agent: Permission denied; run this as root\n"


def test_the_lock_is_held_on_a_disk_that_went_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".lock").touch()
    opened = os.open

    def read_only(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if str(path).endswith(".lock") and flags & (os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return opened(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", read_only)
    with _lock(tmp_path), pytest.raises(Busy), _lock(tmp_path):
        pass
